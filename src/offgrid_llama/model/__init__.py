"""A model and its parts: parameters, placement on devices, vocabulary, adapters, saving."""

"""A context and its parts: batch, memory, outputs, saved states."""

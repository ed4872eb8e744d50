"""The plan of each step, made without a model: the standard library only."""

"""Tools: what a model may call, how it writes a call, and how calls are read."""

"""The worker: a process that owns one model. ``frames`` is what it and the server say to each other."""

"""The worker: a process that owns one model. ``frames`` has the messages between it and the server."""

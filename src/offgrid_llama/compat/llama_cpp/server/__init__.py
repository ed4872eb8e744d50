"""``python -m llama_cpp.server`` of llama-cpp-python 0.3.36: its flags, variables and settings file, for our server."""

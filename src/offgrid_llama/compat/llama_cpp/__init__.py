"""llama-cpp-python 0.3.36's names. ``llama_cpp`` in it is the raw layer: llama.h in ctypes, which nothing guards."""

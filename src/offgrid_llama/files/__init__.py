"""GGUF files: read, checked before a load, written, quantized; what a model's files are."""

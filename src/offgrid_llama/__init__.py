"""Run llama.cpp models from Python."""

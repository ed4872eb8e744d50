"""A pytest plugin for llama-cpp-python's own tests: models that are here in place of those of the Hugging Face hub.

`llama_cpp_tests.py` uses it. Gemma 3 and SmolLM2 stand for the language models, MiniLM for the embedding model; the
recurrent one and the hybrid one are tiny models with random weights of the same architectures.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import huggingface_hub

FILES = {
    "Qwen3.5-0.8B-Q8_0.gguf": "gemma.gguf",
    "stories15M-q4_0.gguf": "smollm2.gguf",
    "bge-small-en-v1.5-q4_k_m.gguf": "minilm.gguf",
    "mamba-130m-hf.Q2_K.gguf": "mamba.gguf",
    "Falcon-H1-Tiny-90M-Instruct-Q2_K.gguf": "falcon-h1.gguf",
}


def hf_hub_download(_repo_id: str, filename: str, **_options: Any) -> str:
    """Return the path of the model that stands for a file."""
    return str(Path(os.environ["LLAMA_CPP_TEST_MODELS"]) / FILES[Path(filename).name])


huggingface_hub.hf_hub_download = hf_hub_download  # type: ignore[assignment]

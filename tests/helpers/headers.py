"""The headers of llama.cpp and of the extension, for tests that read or compile them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CAPI = ROOT / "src" / "offgrid_llama" / "_capi"
VENDOR = ROOT / "vendor" / "llama.cpp"
INCLUDE = [VENDOR / "include", VENDOR / "ggml" / "include", VENDOR / "tools" / "mtmd"]
GGML_HEADERS = ["ggml.h", "ggml-cpu.h", "ggml-backend.h", "ggml-rpc.h", "ggml-opt.h", "gguf.h"]

CI = bool(os.environ.get("CI"))
no_headers = not VENDOR.is_dir() or not any(VENDOR.iterdir())
needs_headers = pytest.mark.skipif(
    no_headers and not CI, reason="vendor/llama.cpp is empty; `git submodule update --init` brings the headers"
)
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None and not CI, reason="no c++ on PATH")


def strip_comments(text: str) -> str:
    """Return C or C++ without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)

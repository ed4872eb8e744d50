"""Write llama_cpp_chat_formats.json: what llama-cpp-python's modules without an engine do, for its drop-in.

``python tests/data/make_llama_cpp_chat_formats.py FOLDER`` takes the unpacked sdist of llama-cpp-python 0.3.36. Its modules
are imported on the libllama of this package. The packages diskcache and transformers need not be installed.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import offgrid_llama as og  # noqa: E402
from helpers import llama_cpp_facts as facts  # noqa: E402
from helpers.functionary_facts import functionary_facts  # noqa: E402
from helpers.gbnf_samples import gbnf_facts  # noqa: E402
from offgrid_llama._capi import lib_dir  # noqa: E402


def main(folder: Path) -> None:
    os.environ["LLAMA_CPP_LIB_PATH"] = str(lib_dir())
    sys.path.insert(0, str(folder))
    sys.modules.setdefault("diskcache", types.ModuleType("diskcache"))
    transformers: Any = types.ModuleType("transformers")
    transformers.AutoTokenizer = None  # a handler imports it, and has no use for it
    sys.modules.setdefault("transformers", transformers)
    names = [*facts.CALLABLES, "llama_types"]
    theirs = types.SimpleNamespace(**{name: importlib.import_module(f"llama_cpp.{name}") for name in names})
    chat = theirs.llama_chat_format
    with og.Model("smollm2-135m-instruct", vocab_only=True) as model:
        grammars = gbnf_facts(theirs.llama_grammar, model.vocab)
    parts: dict[str, Any] = {
        "formats": facts.format_facts(chat),
        "templates": facts.template_facts(chat),
        "handlers": facts.handler_facts(chat),
        "functionary": functionary_facts(chat),
        "types": facts.type_facts(theirs.llama_types),
        "signatures": facts.signature_facts(theirs),
        "lookup": facts.lookup_facts(theirs.llama_speculative),
        "grammars": grammars,
    }
    head = {
        "about": "What the modules of llama_cpp do with given data. Made by make_llama_cpp_chat_formats.py.",
        "source": "llama-cpp-python 0.3.36",
        "licence": "MIT, Copyright (c) 2023 Andrei Betlen",
    }
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    lines += [f" {json.dumps(name)}: {_written(value)}" for name, value in parts.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (ROOT / "tests" / "data" / "llama_cpp_chat_formats.json").write_text(text, encoding="utf-8")
    sys.stdout.write(", ".join(f"{len(value)} {name}" for name, value in parts.items()) + "\n")


def _written(value: Any) -> str:
    """Return JSON with a line for each fact."""
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in value.items()) + "\n }"
    return "[\n" + ",\n".join(f"  {json.dumps(each)}" for each in value) + "\n ]"


if __name__ == "__main__":
    main(Path(sys.argv[1]))

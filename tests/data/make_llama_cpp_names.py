"""Write llama_cpp_names.json: what each name of llama-cpp-python's raw layer is, which the drop-in is compared with.

``python tests/data/make_llama_cpp_names.py FOLDER`` takes the unpacked sdist of llama-cpp-python 0.3.36, which the drop-in
replaces and which carries the same llama.cpp. Its raw layer is imported by itself, on the libllama of this package.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.ctypes_facts import fact  # noqa: E402
from offgrid_llama._capi import lib_dir  # noqa: E402

PREFIXES = ("llama_", "LLAMA_", "ggml_", "GGML_", "gguf_", "GGUF_", "byref")
"""How the names begin that are not modules, types of annotations, or what the module itself is made with."""


def main(folder: Path) -> None:
    os.environ["LLAMA_CPP_LIB_PATH"] = str(lib_dir())
    package = types.ModuleType("llama_cpp")  # without its __init__, which imports all the rest
    package.__path__ = [str(folder / "llama_cpp")]
    sys.modules["llama_cpp"] = package
    raw = importlib.import_module("llama_cpp.llama_cpp")
    names = sorted(name for name in vars(raw) if name.startswith(PREFIXES))
    facts = ",\n".join(f"  {json.dumps(name)}: {json.dumps(fact(raw, name))}" for name in names)
    head = json.dumps(
        {
            "about": "What each public name of llama_cpp/llama_cpp.py is. Made by make_llama_cpp_names.py.",
            "source": "llama-cpp-python 0.3.36",
            "licence": "MIT, Copyright (c) 2023 Andrei Betlen",
        },
        indent=1,
    )
    told = f'{head.removesuffix("}").rstrip()},\n "names": {{\n{facts}\n }}\n}}\n'
    (ROOT / "tests" / "data" / "llama_cpp_names.json").write_text(told, encoding="utf-8")
    sys.stdout.write(f"{len(names)} names\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Write llama_cpp_server_settings.json: the fields of the settings of llama-cpp-python's server, with types and defaults.

``python tests/data/make_llama_cpp_server_settings.py FOLDER`` takes the unpacked sdist of llama-cpp-python 0.3.36. Its
source is read, not imported, for which it would need pydantic-settings.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("ModelSettings", "ServerSettings")


def facts(field: ast.AnnAssign) -> dict[str, Any]:
    """Return a field's type, default and least value. A default that is no literal is an expression."""
    found: dict[str, Any] = {"type": ast.unparse(field.annotation)}
    assert isinstance(field.value, ast.Call)
    for keyword in field.value.keywords:
        if keyword.arg == "ge":
            found["least"] = ast.literal_eval(keyword.value)
        if keyword.arg == "default":
            try:
                found["default"] = eval(ast.unparse(keyword.value), {"__builtins__": {}})
            except (NameError, SyntaxError):
                found["expression"] = ast.unparse(keyword.value)
    return found


def main(folder: Path) -> None:
    source = (folder / "llama_cpp" / "server" / "settings.py").read_text(encoding="utf-8")
    classes = {
        node.name: {
            field.target.id: facts(field)
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name in CLASSES
    }
    told = {
        "about": "The fields of llama_cpp/server/settings.py. Made by make_llama_cpp_server_settings.py.",
        "source": "llama-cpp-python 0.3.36",
        "licence": "MIT, Copyright (c) 2023 Andrei Betlen",
        **classes,
    }
    file = ROOT / "tests" / "data" / "llama_cpp_server_settings.json"
    file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{sum(map(len, classes.values()))} fields\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The rules of docs/structure.md that a reader relies on, held by reading the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "offgrid_llama"

# From the ground up: a room may import from those before it, never from those after it.
ORDER = [
    "errors", "text", "gbnf", "json_schema", "gguf_bytes", "replacing", "_capi", "_handle", "_callbacks", "_check",
    "backend", "threadpool", "rpc", "params", "gguf", "splits", "overrides", "store", "vocab", "saving", "placement",
    "model", "batch", "memory", "logits", "adapter", "state", "perf", "feasibility", "context", "custom", "sampling",
    "chain", "guide", "grammar", "sampling_params", "fast_sampling", "step", "memory_plan", "imatrix", "quantize",
    "embedding", "reranking", "generate", "infill", "chat", "engine", "worker", "server", "cli",
]  # fmt: skip
PURE_ENGINE = {
    f"engine/{name}"
    for name in (
        "budget", "cells", "guessing", "operations", "pace", "padding", "prefixes", "request", "scheduler", "shelf", "slots"
    )
}  # fmt: skip
STANDARD_LIBRARY_ONLY = {"errors", "text", "gbnf", "json_schema", "gguf_bytes", "replacing", *PURE_ENGINE}
MAY_IMPORT_CAPI = set(ORDER[ORDER.index("_handle") : ORDER.index("generate")]) - {"store"}
HEAVY = {
    "numpy", "jinja2", "llguidance", "prompt_toolkit", "pydantic", "rich", "typer", "huggingface_hub", "filelock", "asyncio",
    "fastapi", "starlette", "uvicorn", "msgspec", "prometheus_client",
}  # fmt: skip

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """Return the first name below the package: a module or a sub-package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Return what a file imports when it runs, at its top or inside its functions, as absolute names."""
    found: list[str] = []
    package = ["offgrid_llama", *path.relative_to(PACKAGE).parts[:-1]]

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            if node.module:
                found.append(".".join([*base, node.module]))
            else:
                found.extend(".".join([*base, alias.name]) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def ours(path: Path) -> set[str]:
    """Return the rooms of ours that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("offgrid_llama.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    """A room imports only rooms that are below it, so that no two need each other."""
    if path == PACKAGE / "__init__.py":
        return
    assert room(path) in ORDER, "a new room: give it its place in ORDER, and a line in docs/structure.md"
    allowed = {*ORDER[: ORDER.index(room(path))], room(path)}
    assert ours(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_binding_and_the_nouns_see_c(path: Path) -> None:
    """The raw layer is imported by the noun files and what carries them, and by nobody else."""
    if "_capi" in ours(path) and room(path) != "_capi":
        assert room(path) in MAY_IMPORT_CAPI


@pytest.mark.parametrize("name", sorted(STANDARD_LIBRARY_ONLY))
def test_pure_files_import_the_standard_library(name: str) -> None:
    """What is pure needs nothing but the standard library and the errors."""
    path = PACKAGE / f"{name}.py"
    assert ours(path) <= {"errors", *(["engine"] if name.startswith("engine/") else [])}
    others = {name.split(".")[0] for name in imports(path)} - {"offgrid_llama", "__future__"}
    assert others <= set(sys.stdlib_module_names)


def test_the_server_leaves_models_to_its_workers() -> None:
    """It imports what it says to them, and nothing that runs a model."""
    for path in FILES:
        if room(path) == "server":
            assert ours(path) <= {"server", "worker", "store", "errors"}
            told = {name for name in imports(path) if name.startswith("offgrid_llama.worker")}
            assert told <= {"offgrid_llama.worker.frames"}


@pytest.mark.parametrize("name", ["offgrid_llama", "offgrid_llama.store", "offgrid_llama.chat"])
def test_heavy_packages_wait(name: str) -> None:
    """Importing the library brings nothing heavy: numpy waits for the first logits, the rest for its own command."""
    code = f"import sys, {name}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "offgrid_llama" in loaded
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("name", ["offgrid_llama", "offgrid_llama.store", "offgrid_llama.server.app"])
def test_libllama_waits(name: str) -> None:
    """A process that only asks others to run models, or looks for files, has no libllama in it."""
    code = f"import sys, {name}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "offgrid_llama" in loaded
    assert "offgrid_llama._capi" not in loaded


def test_functions_that_have_the_name_of_their_module() -> None:
    """They stay functions, whatever is imported, and in whichever order."""
    code = (
        "import offgrid_llama.quantize, offgrid_llama as og; og.Generation; og.MemoryPlan; from offgrid_llama import infill;"
        "print(*(type(each).__name__ for each in (og.generate, og.quantize, og.memory_plan, infill, og.rpc, og.samplers)))"
    )
    kinds = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert kinds == ["function"] * 4 + ["module"] * 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arguments_are_checked_with_exceptions(path: Path) -> None:
    """No check is an assert, which python -O takes away."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def test_the_map_names_every_room() -> None:
    """docs/structure.md has a line for each room."""
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    assert [name for name in ORDER if f"`{name}" not in page] == []

"""The rules of docs/structure.md that a reader relies on, held by reading the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "offgrid_llama"

# From the ground up: a folder may import from those before it, never from those after it.
ORDER = [
    "errors", "finish_reason", "start", "text", "_capi", "native", "store", "files", "model", "context", "media", "sampling",
    "tasks", "chat", "engine", "integrations", "worker", "server", "cli", "compat",
]  # fmt: skip
STANDARD_LIBRARY_ONLY = [
    "errors.py", "finish_reason.py", "start.py", "text", "engine/planning", "files/atomic.py",
    "files/claims.py", "files/gguf_encoding.py", "media/audio_header.py", "media/image_header.py",
    "sampling/grammar/gbnf.py", "sampling/grammar/gbnf_as_lark.py",
    "sampling/grammar/gbnf_outline.py", "sampling/grammar/schema_references.py", "sampling/grammar/text_formats.py",
]  # fmt: skip
MAY_IMPORT_CAPI = {"native", "files", "model", "context", "media", "sampling"}
RAW_LAYER = {
    "compat/llama_cpp/ctypes_of_cdef.py",
    "compat/llama_cpp/library.py",
}  # llama.h itself, for code that goes below
HEAVY = {
    "numpy", "jinja2", "jsonschema", "llguidance", "prompt_toolkit", "pydantic", "rich", "typer", "huggingface_hub",
    "filelock", "asyncio", "fastapi", "starlette", "uvicorn", "msgspec", "prometheus_client",
}  # fmt: skip

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """Return the first name below the package: a folder, or a file beside the folders."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    """Return the dotted name of a file's module."""
    return ".".join(["offgrid_llama", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Return what a file imports, as absolute names of modules: at its top, in its functions and for its types alone."""
    found: set[str] = set()
    package = ["offgrid_llama", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {module}
    return found


def ours(path: Path) -> set[str]:
    """Return the folders of ours that a file imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("offgrid_llama.")}


# Imports upward that are still to be opened: from which module to which.
UPWARD: set[tuple[str, str]] = set()


def test_imports_run_downward() -> None:
    """A folder imports only from folders below it, what is imported for its types counted."""
    upward = set()
    for module, path in MODULES.items():
        if module == "offgrid_llama":
            continue
        assert room(path) in ORDER, "a new folder: give it its place in ORDER, and a line in docs/structure.md"
        allowed = {*ORDER[: ORDER.index(room(path))], room(path)}
        upward |= {
            (module, name)
            for name in imports(path)
            if name.startswith("offgrid_llama.") and name.split(".")[1] not in allowed
        }
    assert upward == UPWARD


# Modules that import each other, which are still to be opened.
CIRCLES: set[frozenset[str]] = set()


def test_no_modules_import_each_other() -> None:
    """There is no circle of imports, what is imported for its types, or in a function, counted."""
    graph = {
        module: {
            name for name in imports(path) if name in MODULES and name != module and MODULES[name].stem != "__init__"
        }
        for module, path in MODULES.items()
        if module != "offgrid_llama"
    }
    assert circles(graph) == CIRCLES


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the sets of more than one node from each of which all the others can be reached."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            for name in graph.get(todo.pop(), set()) - found:
                found.add(name)
                todo.append(name)
        return found

    reach = {name: reached(name) for name in graph}
    rings = {name: frozenset(other for other in reach[name] if name in reach.get(other, set())) for name in graph}
    return {ring for ring in rings.values() if len(ring) > 1}


def test_circles_are_found() -> None:
    """Two that import each other are a circle, with what lies between them; one that only imports is not in it."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == {frozenset("abc")}


def test_only_five_folders_see_c() -> None:
    """The extension is imported by the folders of the nouns, and by no folder above them but for the raw layer's files."""
    seeing = {path.relative_to(PACKAGE).as_posix() for path in FILES if "_capi" in ours(path)}
    assert {name.split("/")[0] for name in seeing - RAW_LAYER} - {"_capi"} <= MAY_IMPORT_CAPI


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_pure_files_import_the_standard_library(name: str) -> None:
    """Pure files need nothing but the standard library and other pure files."""
    place = PACKAGE / name
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        pure = tuple(module_of(PACKAGE / each) for each in STANDARD_LIBRARY_ONLY)
        others = {each for each in imports(path) if not each.startswith(pure)}
        assert {each.split(".")[0] for each in others} <= {"__future__", *sys.stdlib_module_names}


def test_the_server_leaves_models_to_its_workers() -> None:
    """It imports what it says to them, and nothing that runs a model."""
    for path in FILES:
        if room(path) == "server":
            assert ours(path) <= {"server", "worker", "store", "start", "errors", "text"}
            told = {name for name in imports(path) if name.startswith("offgrid_llama.worker")}
            assert told <= {f"offgrid_llama.worker.{name}" for name in ("channel", "frames", "generation")}


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
    """They stay functions after any imports, in any order."""
    code = (
        "import offgrid_llama.files.quantize, offgrid_llama.tasks.generate, offgrid_llama as og; og.MemoryPlan;"
        "from offgrid_llama import infill;"
        "print(*(type(each).__name__ for each in (og.generate, og.quantize, og.memory_plan, infill, og.rpc, og.samplers)))"
    )
    kinds = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert kinds == ["function"] * 4 + ["module"] * 2


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=module_of)
def test_no_name_of_a_package_is_that_of_a_module_in_it(path: Path) -> None:
    """A type checker would take the name for the module: "Module is not callable"."""
    modules = {each.stem for each in (*path.parent.glob("*.py"), *path.parent.glob("*/__init__.py"))}
    named = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
    assert not named & modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arguments_are_checked_with_exceptions(path: Path) -> None:
    """No check is an assert, which python -O takes away."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def test_the_map_has_a_line_for_every_file() -> None:
    """docs/structure.md has a table for each folder, with a short line for each of its files, and no others."""
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| `(?:offgrid_llama/)?([\w/]*?)/?` \|.*\n\|---\|---\|\n((?:\|.*\n)*)", page, re.MULTILINE)
    named = {(folder, name) for folder, rows in tables for name in re.findall(r"^\| `([\w.]+)` \|", rows, re.MULTILINE)}
    there = {
        (path.relative_to(PACKAGE).parent.as_posix().removeprefix("."), path.stem)
        for path in FILES
        if not path.stem.startswith("__") and path.parent.name != "_capi"
    }
    assert {(folder, name) for folder, name in named if folder != "_capi"} == there
    assert {name for folder, name in named if folder == "_capi"} <= {
        path.name for path in (PACKAGE / "_capi").iterdir()
    }
    assert max(len(line) for line in page.splitlines() if line.startswith("|")) <= 125


def test_the_downstream_program_uses_every_public_name() -> None:
    """The program that pyright checks strictly has each name of ``__all__`` in it."""
    program = (ROOT / "tests" / "typing" / "downstream.py").read_text(encoding="utf-8")
    used = set(re.findall(r"\bog\.(\w+)", program))
    public = ast.literal_eval(
        subprocess.run(
            [sys.executable, "-c", "import offgrid_llama; print(offgrid_llama.__all__)"],
            capture_output=True, text=True, check=True,
        ).stdout
    )  # fmt: skip
    assert set(public) - used == set()

"""Our own C++ of the extension: each file stands by itself, and what two files need is declared once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from helpers.headers import CAPI, INCLUDE, ROOT, needs_compiler, needs_headers, strip_comments

SOURCES = sorted(CAPI.glob("*.cpp"))
HEADERS = sorted(path for path in CAPI.glob("*.h") if not path.name.endswith(".cdef.h"))
SHARED = [CAPI / "og.h", CAPI / "callbacks.h"]
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
BUILD_INFO = [f'-DOG_BUILD_{name}="?"' for name in ("COMMIT", "COMPILER", "FLAGS")]


def warnings() -> list[str]:
    """Return the warnings that CMakeLists.txt asks for in our own sources."""
    found = re.search(r'set_source_files_properties\(\$\{sources\} PROPERTIES COMPILE_OPTIONS\s+"(.*?)"\)', CMAKE)
    assert found is not None
    return found[1].split(";")


def compile_alone(*arguments: str | Path) -> str:
    """Compile a file without the others, every warning an error, and return what the compiler says."""
    options = ["-fsyntax-only", "-Werror", *warnings(), *BUILD_INFO, *(f"-I{path}" for path in [CAPI, *INCLUDE])]
    return subprocess.run(["c++", *options, *arguments], capture_output=True, text=True, check=False).stderr


def test_cmake_compiles_every_source() -> None:
    """CMakeLists.txt lists each file by its name."""
    assert re.findall(r'"\$\{capi\}/(\w+\.cpp)"', re.findall(r"(?s)set\(sources(.*?)\)", CMAKE)[0]) == [
        path.name for path in SOURCES
    ]


@needs_headers
@needs_compiler
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_source_compiles_alone(source: Path) -> None:
    """A source includes what it uses, and the compiler warns of nothing."""
    assert compile_alone("-std=c++17", source) == ""


@needs_headers
@needs_compiler
@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_header_compiles_alone(header: Path) -> None:
    """A header includes what it uses."""
    assert compile_alone("-std=c++17", "-x", "c++", "-include", header, os.devnull) == ""


@needs_headers
@needs_compiler
@pytest.mark.parametrize("header", SHARED, ids=lambda path: path.name)
def test_shared_header_is_c(header: Path) -> None:
    """A header that cffi reads, too, is plain C, and needs no line of the preprocessor but #include and #pragma once."""
    options = ["-std=c11", "-fsyntax-only", "-Wall", "-Werror", *(f"-I{path}" for path in [CAPI, *INCLUDE])]
    command = ["c++", "-x", "c", *options, "-include", str(header), os.devnull]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""
    lines = [line for line in header.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert [line for line in lines if not line.startswith("#include ") and line != "#pragma once"] == []


def test_types_and_functions_are_declared_once() -> None:
    """Each struct, class and enum is defined in one file, and each function of ours declared in one header."""
    types: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for path in sorted([*SOURCES, *CAPI.glob("*.h")]):
        text = strip_comments(path.read_text(encoding="utf-8"))
        types.update(re.findall(r"\b(?:struct|class|enum(?: class)?) (\w+)(?: : [\w: ,<>]+)? ?\{", text))
        functions.update(re.findall(r"^\w[\w \*]*?\b(og_\w+)\([^;{]*\);", text, re.MULTILINE))
    assert {"og_cancel", "og_fast_sampler", "og_group", "og_step", "llama_batch"} <= types.keys()
    assert {"og_run_step", "og_on_poll", "og_caught_what"} <= functions.keys()
    assert [name for name, count in (types + functions).items() if count > 1] == []


def test_the_extension_exports_its_init_function_alone() -> None:
    """So no name of ours, or of a template, takes the place of another library's, or has it take ours."""
    from offgrid_llama._capi import _llama

    if sys.platform != "linux" or shutil.which("nm") is None:
        pytest.skip("no Linux with nm")
    command = ["nm", "-D", "--defined-only", _llama.__file__]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in output.splitlines()] == ["PyInit__llama"]

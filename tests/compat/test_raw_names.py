"""The raw layer's names against those of llama-cpp-python 0.3.36, and its types against cffi's and the compiler's."""

from __future__ import annotations

import ctypes
import json
import subprocess
import threading
import time
from _ctypes import CFuncPtr
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.ctypes_facts import fact
from helpers.headers import INCLUDE, needs_compiler, needs_headers
from offgrid_llama._capi import ffi
from offgrid_llama.compat.llama_cpp import ctypes_of_cdef, library
from offgrid_llama.compat.llama_cpp import llama_cpp as raw

THEIRS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "llama_cpp_names.json").read_text("utf-8")
)["names"]
CORRECTED: dict[str, str] = {"llama_opt_params": "it lacks the last field, so that llama_opt_init reads beyond it"}
"""Names that are something else in llama-cpp-python, which is wrong there: why."""

STRUCTS = [name for name in ffi.list_types()[1] if name.startswith(("llama_", "ggml_", "gguf_"))]
DEFINED = [name for name in STRUCTS if isinstance(ctypes_of_cdef.named_type(name), type)]


@pytest.mark.parametrize("name", sorted(THEIRS.keys() - CORRECTED.keys()))
def test_each_name_is_what_it_is_in_llama_cpp_python(name: str) -> None:
    """Arguments and results of functions, fields and offsets of structs, values: they are the same."""
    assert json.loads(json.dumps(fact(raw, name))) == THEIRS[name]


def test_import_star_brings_all_of_them() -> None:
    """Each is in ``__all__``, and each name of ``__all__`` can be had."""
    assert THEIRS.keys() <= set(raw.__all__)
    assert [name for name in raw.__all__ if not hasattr(raw, name)] == []
    assert set(raw.__all__) <= set(dir(raw))


def test_what_is_corrected_has_more() -> None:
    """The struct begins as theirs does."""
    theirs, ours = THEIRS["llama_opt_params"], json.loads(json.dumps(fact(raw, "llama_opt_params")))
    assert theirs["struct"] == ours["struct"][:-1]
    assert ours["struct"][-1] == ["optimizer_type", "int32", 40]


def test_there_is_no_other_name() -> None:
    """An AttributeError, as of any module, without our own functions, types and helpers."""
    for name in ("llama_no", "og_decode", "og_step", "LLAMA_VOCAB_PRE_TYPE_NONE", "llama_sampler_i_no", "FILE", "NO"):
        assert not hasattr(raw, name)
    with pytest.raises(AttributeError, match="has no attribute 'llama_no_such_thing'"):
        _ = raw.llama_no_such_thing


@pytest.mark.parametrize("name", DEFINED)
def test_structs_lie_in_memory_as_the_compiler_has_them(name: str) -> None:
    """Size, and offset and size of each field, of ggml's structs as well. cffi verifies its own against the compiler."""
    struct, theirs = getattr(raw, name), ffi.typeof(f"struct {name}")
    assert ctypes.sizeof(struct) == ffi.sizeof(theirs)
    assert ctypes.alignment(struct) == ffi.alignof(theirs)
    assert {field: (offset, size) for field, offset, size in flat(struct)} == {
        field: (known.offset, ffi.sizeof(known.type)) for field, known in theirs.fields
    }


def flat(struct: Any) -> list[tuple[str, int, int]]:
    """Return the fields with offsets and sizes, those of a union's members in its place."""
    fields = []
    for field, kind in struct._fields_:
        offset = getattr(struct, field).offset
        inner = flat(kind) if issubclass(kind, ctypes.Union) else [(field, 0, ctypes.sizeof(kind))]
        fields += [(name, offset + further, size) for name, further, size in inner]
    return fields


def test_all_structs_are_there() -> None:
    """It is cffi that knows which are defined; the others are addresses only."""
    assert {name for name, told in THEIRS.items() if "struct" in told} | {"gguf_init_params"} <= set(DEFINED)
    assert not hasattr(raw, "llama_model")
    assert not hasattr(raw, "ggml_tensor")


@needs_headers
@needs_compiler
def test_types_of_functions_that_the_cdef_leaves_out(tmp_path: Path) -> None:
    """The compiler says that they are those of their successors, or as they are written here."""
    types = {name: f"decltype(&{successor})" for name, successor in library.DEPRECATED.items()} | library.UNDECLARED
    lines = [f'static_assert(std::is_same_v<decltype(&{name}), {kind}>, "{name}");' for name, kind in types.items()]
    source = tmp_path / "probe.cpp"
    source.write_text("\n".join(["#include <type_traits>", '#include "llama.h"', *lines]), encoding="utf-8")
    options = ["-std=c++17", "-w", "-fsyntax-only", *(f"-I{path}" for path in INCLUDE)]
    checked = subprocess.run(["c++", *options, source], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_no_function_of_the_cdef_is_without_its_symbol() -> None:
    """Those of ggml come through libllama's dependencies."""
    functions = [name for name in ctypes_of_cdef.names() if ctypes_of_cdef.function_type(name) is not None]
    assert len(functions) > 300
    assert [name for name in functions if not isinstance(getattr(raw, name), CFuncPtr)] == []


def test_functions_looked_up_in_the_library_have_their_types() -> None:
    """Code goes to ``_lib``, too."""
    assert isinstance(raw._lib.llama_print_system_info(), bytes)
    assert raw._lib.llama_decode.restype is ctypes.c_int32
    assert ctypes.cast(raw._lib.llama_tokenize, ctypes.c_void_p).value


def test_threads_get_one_whole_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second class of the same name would be refused where the first is asked for, and one without fields is of no use."""

    def slowly(struct: str, ctype: Any) -> list[tuple[str, Any]]:
        time.sleep(0.02)
        return fields(struct, ctype)

    def ask(_: int) -> tuple[Any, int]:
        together.wait()
        struct = ctypes_of_cdef.named_type("llama_perf_sampler_data")
        return struct, ctypes.sizeof(struct)

    fields, together = ctypes_of_cdef._fields, threading.Barrier(4)
    monkeypatch.setattr(ctypes_of_cdef, "_structs", {})
    monkeypatch.setattr(ctypes_of_cdef, "_fields", slowly)
    with ThreadPoolExecutor(4) as pool:
        (answer,) = set(pool.map(ask, range(4)))
    assert answer[1] == 16

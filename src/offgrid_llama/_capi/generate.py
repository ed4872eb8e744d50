"""Build step: write the C++ source of the extension module, which makes Python functions of C functions.

``python generate.py OUTPUT`` needs cffi and no compiled part of ours. cffi reads llama.cdef.h, mtmd.cdef.h, og.h and
callbacks.h. The generated source includes the headers of PREAMBLE; CMake compiles it beside our own C++ sources.

Each function of the two cdefs goes through the guard, by a macro of its own name: cffi's code calls ``llama_decode(...)``,
which expands to ``og::guarded<llama_decode>``. The functions of og.h are ours, and guard themselves where they can throw.

cffi releases the GIL around every call. For a getter that returns within nanoseconds, that costs more than the call, and
lets any waiting thread go first. So the functions of ``GETTERS`` keep the GIL.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
MODULE = "offgrid_llama._capi._llama"

GETTERS = re.compile(
    r"llama_(max|n|vocab)_\w+|llama_vocab_type|llama_token_to_piece|llama_model_(n|is|has)_\w+"
    r"|llama_model_(get_vocab|size|desc|ftype|rope_type)|llama_memory_seq_pos_(min|max)|llama_memory_can_shift"
    r"|llama_get_(model|memory|causal_attn)|mtmd_(support|decode_use|get|bitmap_get|bitmap_is|bitmap_set)_(?!cap)\w+"
    r"|mtmd_(input_chunks|input_chunk|image_tokens)_(size|get)(?!_placeholder)\w*|ggml_(type|blck|is)_\w+|gguf_(get|find)_(?!meta)\w+|og_(batch|build|caught)_\w+"
)
PREAMBLE = """\
#include "batch.h"
#include "callbacks.h"
#include "guard.h"
#include "og.h"

#include "ggml-backend.h"
#include "ggml-rpc.h"
#include "mtmd.h"
#include "mtmd-helper.h"

"""
_FUNCTION = re.compile(r"^_cffi_f_(\w+)\(PyObject \*self.*?^}$", re.MULTILINE | re.DOTALL)


def declarations(header: str) -> str:
    """Return the declarations of one of our own headers, without the lines of the preprocessor, which cffi cannot read."""
    text = (HERE / header).read_text(encoding="utf-8")
    return "\n".join("" if line.startswith("#") else line for line in text.split("\n"))


def declared_functions(cdef: str) -> list[str]:
    """Return the names of the functions that ``cdef`` declares, in order, as cffi itself reads them."""
    ffi = FFI()
    ffi.cdef(cdef)
    known = ffi._parser._declarations  # type: ignore[attr-defined]  # private, and the same since cffi 1.0
    return [key.removeprefix("function ") for key in known if key.startswith("function ")]


def keep_gil(function: re.Match[str]) -> str:
    """Return one of cffi's wrappers, without the release of the GIL if it wraps a getter."""
    if not GETTERS.fullmatch(function[1]):
        return function[0]
    code, count = re.subn(r"^  Py_(BEGIN|END)_ALLOW_THREADS\n", "", function[0], flags=re.MULTILINE)
    if count != 2:
        raise RuntimeError(f"cffi writes {function[1]} in another way than generate.py knows")
    return code


def main(output: Path) -> None:
    """Write the C++ source of the extension to ``output``."""
    llama = (HERE / "llama.cdef.h").read_text(encoding="utf-8")
    mtmd = (HERE / "mtmd.cdef.h").read_text(encoding="utf-8")
    guards = [
        f'#define {name}(...) og::{guard}<{name}>{{"{name}"}}(__VA_ARGS__)'
        for name in declared_functions(llama + mtmd)
        for guard in ["guarded_mtmd" if name.startswith("mtmd_") else "guarded"]
    ]
    ffi = FFI()
    ffi.cdef(llama)
    ffi.cdef(mtmd)
    ffi.cdef(declarations("og.h"))
    ffi.cdef(f'extern "Python+C" {{\n{declarations("callbacks.h")}}}')
    ffi.set_source(MODULE, PREAMBLE + "\n".join([*guards, ""]), source_extension=".cpp")
    ffi.emit_c_code(str(output))
    output.write_text(_FUNCTION.sub(keep_gil, output.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

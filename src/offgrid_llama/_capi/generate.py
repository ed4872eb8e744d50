"""Build step: write the extension's C++ source from the two cdef files and our own C++ files.

``python generate.py OUTPUT`` needs cffi and nothing of ours. Every function of llama.cdef.h is wrapped in the guard of
shim.cpp by a macro of its own name: cffi's generated code calls ``llama_decode(...)`` and so goes through
``guarded<llama_decode>``. The functions of shim.cdef.h are ours and ``noexcept`` already.

cffi lets go of the GIL around every call. A getter that returns within nanoseconds gains nothing by that, pays more for
it than for the call itself, and gives way to every other thread that is waiting. So the functions of ``GETTERS`` keep it.
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
    r"|llama_get_(model|memory|causal_attn)|ggml_(type|blck|is)_\w+|gguf_(get|find)_(?!meta)\w+|og_(batch|build|caught)_\w+"
)
_FUNCTION = re.compile(r"^_cffi_f_(\w+)\(PyObject \*self.*?^}$", re.MULTILINE | re.DOTALL)


def declared_functions(cdef: str) -> list[str]:
    """Return the names of the functions that ``cdef`` declares, in order, as cffi itself reads them."""
    ffi = FFI()
    ffi.cdef(cdef)
    declarations = ffi._parser._declarations  # type: ignore[attr-defined]  # private, and the same since cffi 1.0
    return [key.removeprefix("function ") for key in declarations if key.startswith("function ")]


def keep_gil(function: re.Match[str]) -> str:
    """Return one of cffi's wrappers without its letting go of the GIL, if it wraps a getter."""
    if not GETTERS.fullmatch(function[1]):
        return function[0]
    code, count = re.subn(r"^  Py_(BEGIN|END)_ALLOW_THREADS\n", "", function[0], flags=re.MULTILINE)
    if count != 2:
        raise RuntimeError(f"cffi writes {function[1]} in another way than generate.py knows")
    return code


def main(output: Path) -> None:
    """Write the C++ source of the extension to ``output``."""
    llama = (HERE / "llama.cdef.h").read_text(encoding="utf-8")
    shim = (HERE / "shim.cdef.h").read_text(encoding="utf-8")
    guards = [f'#define {name}(...) guarded<{name}>{{"{name}"}}(__VA_ARGS__)' for name in declared_functions(llama)]
    ffi = FFI()
    ffi.cdef(llama)
    ffi.cdef(shim)
    own = [(HERE / name).read_text(encoding="utf-8") for name in ("shim.cpp", "fast_sampling.cpp", "step.cpp")]
    preamble = "\n".join([*own, *guards, ""])
    ffi.set_source(MODULE, preamble, source_extension=".cpp")
    ffi.emit_c_code(str(output))
    output.write_text(_FUNCTION.sub(keep_gil, output.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

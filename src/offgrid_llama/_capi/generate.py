"""Build step: write the extension's C++ source from the two cdef files and shim.cpp.

``python generate.py OUTPUT`` needs cffi and nothing of ours. Every function of llama.cdef.h is wrapped in the guard of
shim.cpp by a macro of its own name: cffi's generated code calls ``llama_decode(...)`` and so goes through
``guarded<llama_decode>``. The functions of shim.cdef.h are ours and ``noexcept`` already.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
MODULE = "offgrid_llama._capi._llama"


def declared_functions(cdef: str) -> list[str]:
    """Return the names of the functions that ``cdef`` declares, in order, as cffi itself reads them."""
    ffi = FFI()
    ffi.cdef(cdef)
    declarations = ffi._parser._declarations  # type: ignore[attr-defined]  # private, and the same since cffi 1.0
    return [key.removeprefix("function ") for key in declarations if key.startswith("function ")]


def main(output: Path) -> None:
    """Write the C++ source of the extension to ``output``."""
    llama = (HERE / "llama.cdef.h").read_text(encoding="utf-8")
    shim = (HERE / "shim.cdef.h").read_text(encoding="utf-8")
    guards = [f'#define {name}(...) guarded<{name}>{{"{name}"}}(__VA_ARGS__)' for name in declared_functions(llama)]
    ffi = FFI()
    ffi.cdef(llama)
    ffi.cdef(shim)
    preamble = (HERE / "shim.cpp").read_text(encoding="utf-8") + "\n" + "\n".join(guards) + "\n"
    ffi.set_source(MODULE, preamble, source_extension=".cpp")
    ffi.emit_c_code(str(output))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

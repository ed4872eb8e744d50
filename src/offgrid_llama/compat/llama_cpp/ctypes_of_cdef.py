"""ctypes of what ``_capi/llama.cdef.h`` declares: structs, callbacks and functions, as cffi knows them at run time.

A type is written in ctypes as llama-cpp-python 0.3.36 writes it, because code that passes arguments depends on that:

- A pointer to ``void``, or to a struct that llama.h does not define, is ``c_void_p``: Python sees an int, or None for NULL.
- A pointer to ``char`` is ``c_char_p``: bytes, or a buffer to write to.
- A pointer to a function is a ``CFUNCTYPE``. ctypes has one class for each signature.
- Any other pointer is a ``POINTER``, which takes arrays and ``byref()`` as well.
- An enum is ``c_int``.

``LORA``, ``FIELDS``, and ``ARGUMENTS`` of ``library`` are the exceptions.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from typing import Any

from offgrid_llama._capi import ffi, lib

__all__ = ["constant", "ctypes_of", "fields", "function_type", "named_type", "names", "parse"]

PRIMITIVES: dict[str, Any] = {
    "_Bool": ctypes.c_bool,
    "char": ctypes.c_char,
    "int": ctypes.c_int,
    "int8_t": ctypes.c_int8,
    "uint8_t": ctypes.c_uint8,
    "int16_t": ctypes.c_int16,
    "uint16_t": ctypes.c_uint16,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}
LORA = "struct llama_adapter_lora"
"""The one undefined struct whose pointer is not ``c_void_p``, but a pointer to one."""

FIELDS: dict[tuple[str, str], Any] = {
    ("llama_model_params", "devices"): ctypes.c_void_p,
    ("llama_model_params", "tensor_buft_overrides"): ctypes.c_void_p,
    ("llama_sampler_seq_config", "sampler"): ctypes.c_void_p,
}
"""Fields that are plain addresses."""

UNIONS = {"llama_model_kv_override": "value"}
"""The name that the field for a struct's anonymous union gets. The union's class is named after both."""

PREFIXES = ("llama_", "LLAMA_", "ggml_", "GGML_", "gguf_", "GGUF_")
_lock = threading.RLock()
_structs: dict[str, Any] = {}


def names() -> list[str]:
    """Return the names of the functions, the constants and the defined types of the cdef."""
    typedefs, structs, _ = ffi.list_types()
    return [name for name in dir(lib) if name.startswith(PREFIXES)] + [
        name for name in {*typedefs, *structs} if _named(name) is not None
    ]


def fields(struct: str) -> list[str]:
    """Return the names of a struct's fields in C."""
    return [name for name, _ in ffi.typeof(f"struct {struct}").fields]


def constant(name: str) -> int | None:
    """Return the value of a macro or of an enum's constant, None if the cdef has no number of that name."""
    value = getattr(lib, name, None) if name.startswith(PREFIXES) else None
    return value if isinstance(value, int) else None


def function_type(name: str) -> Any:
    """Return cffi's type of a function, None if the cdef has none of that name."""
    value = getattr(lib, name, None) if name.startswith(PREFIXES) else None
    if value is None or isinstance(value, int):
        return None
    ctype = ffi.typeof(value)
    return ctype if ctype.kind == "function" else None  # gguf.h has texts, too


def parse(text: str) -> Any:
    """Return cffi's type for the text of a C type."""
    return ffi.typeof(text)


def named_type(name: str) -> Any:
    """Return the ctypes type of a struct that is defined, or of a typedef; None if the cdef has neither."""
    ctype = _named(name)
    return None if ctype is None else ctypes_of(ctype)


def _named(name: str) -> Any:
    """Return cffi's type of a struct that is defined, or of a typedef; None if the cdef has neither."""
    typedefs, structs, _ = ffi.list_types()
    if not name.startswith(PREFIXES) or (name not in structs and name not in typedefs):
        return None
    ctype = ffi.typeof(f"struct {name}" if name in structs else name)
    return None if ctype.kind == "struct" and not _defined(ctype) else ctype


def _defined(struct: Any) -> bool:
    """Whether the cdef has the struct's fields. cffi 2.1 aborts the process when asked for those of one that has none."""
    try:
        ffi.sizeof(struct)
    except ffi.error:
        return False
    return True


def ctypes_of(ctype: Any) -> Any:
    """Return the ctypes type of a cffi type, None for ``void``."""
    return _MAKERS[ctype.kind](ctype)


def _callback(function: Any) -> Any:
    """Return the ctypes type of a pointer to a function."""
    if function.result.kind == "struct":  # ctypes makes no callbacks that return one
        return ctypes.c_void_p
    return ctypes.CFUNCTYPE(ctypes_of(function.result), *map(ctypes_of, function.args))


def _pointer(ctype: Any) -> Any:
    """Return the ctypes type of a pointer to anything but a function."""
    target = ctype.item
    if target.cname == "char":
        return ctypes.c_char_p
    if target.cname == LORA:
        return ctypes.POINTER(ctypes.c_void_p)
    if target.kind == "void" or (target.kind == "struct" and not _defined(target)):
        return ctypes.c_void_p
    return ctypes.POINTER(ctypes_of(target))


def _struct(ctype: Any) -> Any:
    """Return the class of a struct, the same one each time."""
    name = ctype.cname.removeprefix("struct ")
    with _lock:
        if name not in _structs:
            # It is known before its fields are, for structs of samplers point at each other.
            _structs[name] = type(name, (ctypes.Structure,), {"__module__": __package__ + ".llama_cpp"})
            _structs[name]._fields_ = _fields(name, ctype)
        return _structs[name]


def _fields(struct: str, ctype: Any) -> list[tuple[str, Any]]:
    """Return the fields of a struct. cffi tells the members of an anonymous union as fields at one offset."""
    fields = []
    for _, group in itertools.groupby(ctype.fields, key=lambda field: field[1].offset):
        members = [(name, FIELDS.get((struct, name)) or ctypes_of(field.type)) for name, field in group]
        if len(members) > 1:
            members = [(UNIONS[struct], _union(f"{struct}_{UNIONS[struct]}", members))]
        fields += members
    return fields


def _union(name: str, members: list[tuple[str, Any]]) -> Any:
    return type(name, (ctypes.Union,), {"_fields_": members, "__module__": __package__ + ".llama_cpp"})


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "primitive": lambda ctype: PRIMITIVES[ctype.cname],
    "enum": lambda _: ctypes.c_int,
    "array": lambda ctype: ctypes_of(ctype.item) * ctype.length,
    "pointer": _pointer,
    "function": _callback,
    "struct": _struct,
    "void": lambda _: None,
}
"""How each kind of cffi's types is made. A pointer to a function is of the kind "function"."""

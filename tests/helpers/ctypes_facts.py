"""What the names of a ctypes binding are: the types of functions, the fields of structs, values. As text, to be compared."""

from __future__ import annotations

import ctypes
import inspect
from _ctypes import CFuncPtr
from typing import Any

LETTERS = {"?": "bool", "c": "char", "z": "char *", "P": "void *", "f": "float", "d": "double"}
"""ctypes' codes of types, without those of integers, whose names have their sizes."""


def type_text(kind: Any) -> str:
    """Return a ctypes type in words that do not depend on the platform's names of integers."""
    if kind is None:
        return "void"
    if issubclass(kind, (ctypes.Structure, ctypes.Union)):
        return str(kind.__name__)
    if issubclass(kind, ctypes._Pointer):
        return f"{type_text(kind._type_)} *"
    if issubclass(kind, CFuncPtr):
        return f"callback {signature(kind._restype_, kind._argtypes_)}"
    if issubclass(kind, ctypes.Array):
        return f"{type_text(kind._type_)}[{kind._length_}]"
    letter = kind._type_
    return LETTERS.get(letter) or f"{'u' if letter.isupper() else ''}int{8 * ctypes.sizeof(kind)}"


def signature(result: Any, arguments: Any) -> str:
    """Return the type of a function."""
    return f"{type_text(result)} ({', '.join(map(type_text, arguments))})"


def fact(module: Any, name: str) -> dict[str, Any]:
    """Return what a name of a binding is."""
    value = getattr(module, name)
    if isinstance(value, CFuncPtr):
        return {"function": signature(value.restype, value.argtypes)}
    if isinstance(value, int):
        return {"constant": value}
    if isinstance(value, type) and issubclass(value, (ctypes.Structure, ctypes.Union)):
        fields = [[field, type_text(kind), getattr(value, field).offset] for field, kind, *_ in value._fields_]
        return {"union" if issubclass(value, ctypes.Union) else "struct": fields, "size": ctypes.sizeof(value)}
    if isinstance(value, type) and hasattr(value, "_type_" if not issubclass(value, CFuncPtr) else "_restype_"):
        return {"type": type_text(value)}
    if hasattr(value, "__supertype__"):
        return {"new type of": value.__supertype__.__name__}
    if inspect.isfunction(value):  # one that is deprecated warns, and calls the library's
        called = getattr(value, "__wrapped__", None) or getattr(module, f"_{name}", None)
        if not isinstance(called, CFuncPtr):
            return {"deprecated": "Python"}
        return {"deprecated": signature(called.restype, called.argtypes)}
    return {"other": type(value).__name__}

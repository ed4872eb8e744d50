"""Overrides of a load: metadata in place of the file's, and memory for some tensors (``llama_model_params``).

llama.cpp ignores an override of a key that it does not read, or of another type than it expects, with a line in its log at
most. Here both are errors, as an override without effect is a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import ModelLoadError, NativeError
from offgrid_llama.native.check import number, raise_caught, real, text_of

from .gguf import GGUF

__all__ = ["Override", "buft_array", "checked", "kv_array", "regex", "unused"]

Override = bool | int | float | str

MAX_TEXT_BYTES = 127
"""Bytes of a key, and of a value that is text, in UTF-8: both are ``char[128]`` in llama.h."""
MAX_PATTERN_BYTES = 256
"""Bytes of a regular expression: std::regex recurses over its nesting, and a long one overflows the stack."""

_MAX_FLOAT32 = 3.4028234663852886e38
_TYPES: dict[type, tuple[str, ...]] = {
    bool: ("bool",), int: ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"), float: ("f32", "f64"), str: ("str",)
}  # fmt: skip
_USED = re.compile(r"Using metadata override \( *\w+\) '(.*?)' = ")


def checked(kv_overrides: Mapping[str, Override] | None, file: GGUF) -> dict[str, Override]:
    """Return the overrides of a file's metadata, with numbers as llama.cpp stores them.

    Raises TypeError or ValueError, which name the key, for an override that llama.cpp would cut off, ignore or abort on.
    """
    return {key: _checked_value(key, value, file) for key, value in (kv_overrides or {}).items()}


def _checked_value(key: str, value: Override, file: GGUF) -> Override:
    _check_text("kv_overrides: a key", key)
    if not key:
        raise ValueError("kv_overrides: a key must have a name")
    name = f"kv_overrides[{key!r}]"
    if key.startswith("split.") or key == "general.alignment":
        raise ValueError(f"{name}: it says how the files are laid out, which no override can change")
    kind = file.value_type(key) if key in file else ""
    if kind and file.array_length(key) is not None:
        raise TypeError(f"{name}: the file has an array there, which llama.cpp cannot override")
    value = _as_stored(name, value, kind)
    if kind and kind not in _TYPES[type(value)]:
        raise TypeError(f"{name} must be of the file's type, {kind}, not {type(value).__name__}")
    return value


def _as_stored(name: str, value: Override, kind: str) -> Override:
    """Return a value within the limits of the C struct: text as it is, a float of float32, an int of 32 bits."""
    if isinstance(value, str):
        _check_text(name, value)
        return value
    if isinstance(value, float) or kind in _TYPES[float]:
        return real(name, value, -_MAX_FLOAT32, _MAX_FLOAT32)
    return value if isinstance(value, bool) else number(name, value, -(2**31), 2**32 - 1)


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, not {type(text).__name__}")
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_TEXT_BYTES or not text.isprintable():
        raise ValueError(
            f"{name} must be printable text of at most {MAX_TEXT_BYTES} bytes in UTF-8, not of {size}: {text!r}"
        )


def kv_array(overrides: Mapping[str, Override]) -> Any:
    """Return a ``llama_model_kv_override[]`` that ends with an empty key."""
    array = ffi.new("struct llama_model_kv_override[]", len(overrides) + 1)
    for c, (key, value) in zip(array, overrides.items(), strict=False):
        c.key = key.encode("utf-8")
        if isinstance(value, bool):
            c.tag, c.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, str):
            c.tag, c.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode("utf-8")
        elif isinstance(value, float):
            c.tag, c.val_f64 = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
        else:
            c.tag, c.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
    return array


def unused(overrides: Mapping[str, Override], log: Iterable[str]) -> None:
    """Raise ModelLoadError for an override that llama.cpp has not used, as its log shows."""
    used = {match[1] for line in log if (match := _USED.search(line))}
    for key, value in overrides.items():
        if key not in used:
            raise ModelLoadError(
                f"kv_overrides[{key!r}] = {value!r} has no effect: llama.cpp reads no such key, or one of another type"
            )


def regex(name: str, pattern: object) -> bytes:
    """Return a regular expression in UTF-8, for std::regex (ECMAScript). Raises TypeError, or ValueError for a bad one."""
    if not isinstance(pattern, str):
        raise TypeError(f"{name} must have regular expressions as keys, not {type(pattern).__name__}")
    data = pattern.encode("utf-8")
    if not 0 < len(data) <= MAX_PATTERN_BYTES or b"\0" in data:
        raise ValueError(f"{name}: a regular expression must have 1 to {MAX_PATTERN_BYTES} bytes, none of them zero")
    if not lib.og_regex_compiles(data):
        try:
            raise_caught()
        except NativeError as error:
            raise ValueError(f"{name}: {pattern!r} is no regular expression: {error.what}") from None
    return data


def buft_array(tensor_buft_overrides: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """Return a ``llama_model_tensor_buft_override[]`` that ends with NULL, and the strings that it points to."""
    known = {}
    for index in range(lib.ggml_backend_dev_count()):
        buft = lib.ggml_backend_dev_buffer_type(lib.ggml_backend_dev_get(index))
        if buft:
            known[text_of(lib.ggml_backend_buft_name(buft))] = buft
    array = ffi.new("struct llama_model_tensor_buft_override[]", len(tensor_buft_overrides) + 1)
    keep = []
    for c, (pattern, name) in zip(array, tensor_buft_overrides.items(), strict=False):
        keep.append(ffi.new("char[]", regex("tensor_buft_overrides", pattern)))
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"tensor_buft_overrides[{pattern!r}] must be one of {', '.join(known)}, not {name!r}")
        c.pattern, c.buft = keep[-1], known[name]
    return array, keep

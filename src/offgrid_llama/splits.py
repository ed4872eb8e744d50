"""The files of one model: one GGUF, or the splits of one, each with its header opened and checked before a load.

llama.cpp looks at the headers of the second and later splits while it loads, and ends the process where a number has
another type than it expects; a missing split it reports by a line in its log.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import GGUFError
from .gguf import GGUF

__all__ = ["File", "digest", "opened_all", "split_path"]

File = Path | BinaryIO


def split_path(prefix: str | os.PathLike[str], number: int, count: int) -> Path:
    """Return the path of one split, numbered from 0, as llama.cpp names them (``llama_split_path``)."""
    return Path(f"{os.fspath(prefix)}-{number + 1:05d}-of-{count:05d}.gguf")


@contextmanager
def opened_all(files: Sequence[File]) -> Iterator[list[GGUF]]:
    """Open the header of each file of a model; of a split model whose first file alone is given, find the others by name.

    Raises GGUFError for files that are not all splits of one model, in their order, and for what GGUF raises it.
    """
    with ExitStack() as stack:
        headers = [stack.enter_context(GGUF(files[0]))]
        count = _number(headers[0], "split.count", 1)
        rest = list(files[1:])
        if count > 1:
            _refuse_other_than(0, headers[0])
        if count > 1 and not rest:
            rest = _others(files[0], count)
        if len(rest) != max(count, 1) - 1:
            raise GGUFError(f"{headers[0].path} is one of {count} splits, and {1 + len(rest)} files were given")
        headers += [stack.enter_context(GGUF(file)) for file in rest]
        for index, header in enumerate(headers[1:], 1):
            _refuse_other_than(index, header)
        yield headers


def _refuse_other_than(index: int, header: GGUF) -> None:
    if (number := _number(header, "split.no", -1)) != index:
        raise GGUFError(f"{header.path} says that it is split {number}, numbered from 0, and not {index}")


def _number(header: GGUF, key: str, default: int) -> int:
    if key not in header:
        return default
    value = header[key]
    if header.value_type(key) != "u16" or not isinstance(value, int):
        raise GGUFError(f"{header.path}: {key} must be of type u16")
    return value


def _others(first: File, count: int) -> list[File]:
    ending = split_path("", 0, count).name
    if not isinstance(first, Path) or not first.name.endswith(ending) or first.name == ending:
        raise GGUFError(
            f"{first} is the first of {count} splits, but no path NAME{ending}: give the paths of all, in a list"
        )
    prefix = os.fspath(first).removesuffix(ending)
    others = [split_path(prefix, index, count) for index in range(1, count)]
    for other in others:
        if not other.is_file():
            raise GGUFError(f"{first} is the first of {count} splits, and {other} is missing")
    return list(others)


def digest(headers: Sequence[GGUF], kv_overrides: Mapping[str, bool | int | float | str]) -> str:
    """Return a fingerprint of a model, 32 hexadecimal digits: of all its files, and of what was overridden."""
    parts = [header.fingerprint() for header in headers]
    if kv_overrides:
        parts.append(json.dumps(dict(kv_overrides), sort_keys=True))
    return parts[0] if len(parts) == 1 else hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

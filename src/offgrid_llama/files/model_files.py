"""ModelFiles: the files of one model, one GGUF or the splits of one, with the header of each.

llama.cpp reads the headers of the second and later splits while it loads, and ends the process where a number has another
type than it expects. A missing split is a line in its log. So all headers are opened and checked before a load.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from offgrid_llama.errors import GGUFError, ModelLoadError
from offgrid_llama.native.kinds import path_of
from offgrid_llama.store.consent import Download, checked_download

from .gguf import GGUF
from .gguf_header import Tensor
from .open_file import FileIdentity, is_open_file

__all__ = ["File", "ModelFiles", "opened_all", "split_path"]

File = Path | BinaryIO


class ModelFiles:
    """The files of one model, as they were when they were first opened.

    Args:
        model: as Model takes it: a path, the paths of all splits, a name that ``store`` knows, or an open file.
        download: what happens to a name that the store does not have yet; see ``store.resolve``.

    Raises FileNotFoundError or UnknownModelError where no such file is found, and as ``store.resolve`` does.

    Attributes:
        path: the file, or the first of its splits; the name of an open file.
        tensors: all tensors, by name.
    """

    def __init__(self, model: Any, download: Download = "auto") -> None:
        self._files = _found(model, checked_download(download))
        self.path = Path()
        self.tensors: dict[str, Tensor] = {}
        self._identities: list[FileIdentity] = []
        self._fingerprint: str | None = None

    @contextmanager
    def opened(self) -> Iterator[list[GGUF]]:
        """Open all headers, as ``opened_all`` does; the first time, note what they say."""
        with opened_all(self._files) as headers:
            if not self._identities:
                self.path = headers[0].path
                self.tensors = {tensor.name: tensor for header in headers for tensor in header.tensors()}
                self._identities = [header.identity for header in headers]
            yield headers

    def unchanged(self, headers: Sequence[GGUF]) -> bool:
        """Whether the files are still those that were opened first."""
        return [header.identity for header in headers] == self._identities

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each tensor, by name."""
        return {name: tensor.n_bytes for name, tensor in self.tensors.items()}

    def keep_fingerprint(self, headers: Sequence[GGUF], kv_overrides: Mapping[str, bool | int | float | str]) -> None:
        """Compute the fingerprint now, of an open file: it may be closed when the fingerprint is asked for."""
        if not isinstance(self._files[0], Path):
            self._fingerprint = _digest(headers, kv_overrides)

    def fingerprint(self, kv_overrides: Mapping[str, bool | int | float | str]) -> str:
        """Return a digest of the files and the overrides, 32 hexadecimal digits. The files are read once.

        Raises ModelLoadError where they have changed since they were opened first.
        """
        if self._fingerprint is None:
            with self.opened() as headers:
                if not self.unchanged(headers):
                    raise ModelLoadError(
                        f"{self.path} has changed since the model was loaded: nothing can be said of it"
                    )
                self._fingerprint = _digest(headers, kv_overrides)
        return self._fingerprint


def _found(model: Any, download: Download) -> list[File]:
    if is_open_file(model):
        return [model]
    if isinstance(model, (list, tuple)):
        if not model:
            raise ValueError("model must have at least one path")
        return [_found_path(path, download) for path in model]
    return [_found_path(model, download)]


def _found_path(model: Any, download: Download) -> Path:
    path = path_of("model", model)
    if path.is_file():
        return path
    if isinstance(model, str):
        from offgrid_llama import store

        return store.resolve(model, download=download)
    raise FileNotFoundError(f"there is no file {path}")


def split_path(prefix: str | os.PathLike[str], number: int, count: int) -> Path:
    """Return the path of one split, numbered from 0, as llama.cpp names them (``llama_split_path``)."""
    return Path(f"{os.fspath(prefix)}-{number + 1:05d}-of-{count:05d}.gguf")


@contextmanager
def opened_all(files: Sequence[File]) -> Iterator[list[GGUF]]:
    """Open the header of each file of a model. The other splits are found by their names, if only the first is given.

    Raises GGUFError for files that are not all splits of one model, in their order, and where GGUF raises it.
    """
    with ExitStack() as stack:
        headers = [stack.enter_context(GGUF(files[0]))]
        count = _number(headers[0], "split.count", 1)
        rest = list(files[1:])
        if count > 1:
            _check_index(headers[0], 0)
        if count > 1 and not rest:
            rest = _others(files[0], count)
        if len(rest) != max(count, 1) - 1:
            raise GGUFError(f"{headers[0].path} is one of {count} splits, and {1 + len(rest)} files were given")
        headers += [stack.enter_context(GGUF(file)) for file in rest]
        for index, header in enumerate(headers[1:], 1):
            _check_index(header, index)
        yield headers


def _check_index(header: GGUF, index: int) -> None:
    if (said := _number(header, "split.no", -1)) != index:
        raise GGUFError(f"{header.path} says that it is split {said}, numbered from 0, and not {index}")


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


def _digest(headers: Sequence[GGUF], kv_overrides: Mapping[str, bool | int | float | str]) -> str:
    parts = [header.fingerprint() for header in headers]
    if kv_overrides:
        parts.append(json.dumps(dict(kv_overrides), sort_keys=True))
    return parts[0] if len(parts) == 1 else hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

"""States as files: one for each key in a folder, written whole or not at all, read without running anything in them.

A file is a line of JSON, and four arrays in NumPy's format, which are not pickled: the key, the tokens, the scores and
llama.cpp's state. Its name is the key's hash, its time of change the time of its last use.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from offgrid_llama.files.atomic import replacing

from .llama_state import LlamaState

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["StateFiles"]

_logger = logging.getLogger("offgrid_llama.compat")

FORMAT = "offgrid_llama.llama_state.1"
SUFFIX = ".llama_state"
HEADER_MAX_BYTES = 4096


class StateFiles:
    """The states in a folder.

    Args:
        folder: its path; it is made if it is not there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keys: dict[str, tuple[int, ...]] = {}  # by the names of files, which do not change their keys
        self._latest = 0

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(size for _, size in self._listed())

    def keys(self) -> list[tuple[int, ...]]:
        """Return the keys of the files, the least recently used one first."""
        names = [name for name, _ in self._listed()]
        self._keys = {name: self._keys[name] for name in names if name in self._keys}
        for name in names:
            if name not in self._keys:
                key = self._read(name, of_key=True)
                if key is not None:
                    self._keys[name] = key
        return [self._keys[name] for name in names if name in self._keys]

    def read(self, key: tuple[int, ...]) -> LlamaState | None:
        """Return the state of a key and note its use; None where its file is missing, or damaged."""
        name = _name(key)
        state: LlamaState | None = self._read(name, of_key=False)
        if state is not None:
            self._note_use(self.folder / name)
        return state

    def write(self, key: tuple[int, ...], state: LlamaState) -> None:
        """Write a state, in the place of the one that the key had. Raises OSError."""
        import numpy as np

        arrays: list[npt.NDArray[Any]] = [
            np.asarray(key, np.int32),
            np.asarray(state.input_ids),
            np.asarray(state.scores),
            np.frombuffer(state.llama_state, np.uint8),
        ]
        numbers = {"n_tokens": state.n_tokens, "llama_state_size": state.llama_state_size, "seed": state.seed}
        numbers = {name: int(each) for name, each in numbers.items()}
        told = {"format": FORMAT, "crc": _checksum(numbers, arrays), **numbers}
        path = self.folder / _name(key)
        with replacing(path) as unfinished, open(unfinished, "wb") as file:
            file.write(json.dumps(told).encode() + b"\n")
            for array in arrays:
                np.save(file, array, allow_pickle=False)
        self._note_use(path)

    def trim(self, capacity: int) -> None:
        """Delete the files that were used least recently, until the others take up to ``capacity`` bytes."""
        listed = self._listed()
        total = sum(size for _, size in listed)
        for name, size in listed:
            if total <= capacity:
                return
            (self.folder / name).unlink(missing_ok=True)
            total -= size

    def _listed(self) -> list[tuple[str, int]]:
        """Return the names and the sizes of the files, the least recently used one first."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    with suppress(FileNotFoundError):
                        stat = entry.stat()
                        found.append((stat.st_mtime_ns, entry.name, stat.st_size))
        return [(name, size) for _, name, size in sorted(found)]

    def _note_use(self, path: Path) -> None:
        """Make a file the last one that was used."""
        self._latest = max(self._latest + 1, time.time_ns())  # later than the last, however coarse the clock is
        with suppress(OSError):
            os.utime(path, ns=(self._latest, self._latest))

    def _read(self, name: str, *, of_key: bool) -> Any:
        """Return the key or the state in a file; None where it is missing, or damaged. A damaged file is deleted."""
        path = self.folder / name
        try:
            with open(path, "rb") as file:
                return _key(file, name) if of_key else _state(file, name)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            _logger.warning("deleted %s, which is damaged: %s", path, error)
            path.unlink(missing_ok=True)
            return None


def _name(key: tuple[int, ...]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest() + SUFFIX


def _header(file: BinaryIO) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(file.readline(HEADER_MAX_BYTES))
    if told.pop("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    return told


def _array(file: BinaryIO) -> npt.NDArray[Any]:
    import numpy as np

    array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _key(file: BinaryIO, name: str) -> tuple[int, ...]:
    """Return the key of a file, which must be the one that its name stands for."""
    _header(file)
    key = tuple(_array(file).tolist())
    if _name(key) != name:
        raise ValueError("its key is not that of its name")
    return key


def _state(file: BinaryIO, name: str) -> LlamaState:
    """Return the state of a file."""
    told = _header(file)
    crc = told.pop("crc")
    key, tokens, scores, state = arrays = [_array(file) for _ in range(4)]
    if _name(tuple(key.tolist())) != name or _checksum(told, arrays) != crc:
        raise ValueError("its checksum is wrong")
    return LlamaState(tokens, scores, llama_state=state.tobytes(), **told)


def _checksum(numbers: dict[str, Any], arrays: list[npt.NDArray[Any]]) -> int:
    import numpy as np

    crc = zlib.crc32(json.dumps(numbers, sort_keys=True).encode())
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, crc)
    return crc

"""GGUF files (gguf.h): metadata and tensors without loading a model, and changed copies.

``GGUF`` reads the header only: keys, arrays and the table of tensors, no weights. ``GGUF.check()`` applies the rules of
``gguf_preflight``, which refuse a file on which llama.cpp would abort the process; ``Model`` calls it before each load.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import GGUFError
from offgrid_llama.native.backend import start
from offgrid_llama.native.callbacks import forget_log, recent_log
from offgrid_llama.native.check import not_null, text_of
from offgrid_llama.native.handle import Handle, Owner

from . import gguf_preflight
from .atomic import replacing
from .gguf_encoding import TYPES, encoded, positions, type_for
from .gguf_header import Metadata, Overridden, Tensor, Value
from .open_file import FileIdentity, c_file, is_open_file, reopened

__all__ = ["GGUF", "Tensor", "Value"]

FINGERPRINT_SAMPLE_BYTES = 4096
"""Bytes of a tensor that its fingerprint reads at the beginning, in the middle and at the end."""
COPY_CHUNK_BYTES = 16 * 1024 * 1024
"""Bytes of tensors in memory at a time while a file is copied."""

_ALIGNMENT = "general.alignment"
_MAGIC = b"GGUF"

_SCALARS = {
    lib.GGUF_TYPE_UINT8: "uint8_t",
    lib.GGUF_TYPE_INT8: "int8_t",
    lib.GGUF_TYPE_UINT16: "uint16_t",
    lib.GGUF_TYPE_INT16: "int16_t",
    lib.GGUF_TYPE_UINT32: "uint32_t",
    lib.GGUF_TYPE_INT32: "int32_t",
    lib.GGUF_TYPE_FLOAT32: "float",
    lib.GGUF_TYPE_BOOL: "int8_t",  # so that a byte other than 0 and 1 does no harm
    lib.GGUF_TYPE_UINT64: "uint64_t",
    lib.GGUF_TYPE_INT64: "int64_t",
    lib.GGUF_TYPE_FLOAT64: "double",
}


class GGUF(Owner, Metadata):
    """The header of a GGUF file, as a read-only mapping from key to value (``gguf_init_from_file_ptr``).

    Args:
        file: a path, or a file that is open for reading in binary mode. An open file is read from its position, so that
            a GGUF inside of a larger file can be read; its position stays where it is.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: from opening the file.
        TypeError: an open file is in text mode, or is none of the operating system.
        GGUFError: the file is no GGUF, its header is damaged, or it ends before its last tensor does.

    Attributes:
        path: the path, or the name of an open file. is_path: whether it is a path.
        version: of the format. n_tensors: rows in the table of tensors.
        begin, data_offset: where the GGUF and its tensors begin in the file, in bytes.
    """

    def __init__(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        start()
        self._file: Path | BinaryIO = file if is_open_file(file) else Path(file)  # type: ignore[arg-type]
        self.path = self._file if isinstance(self._file, Path) else Path(str(getattr(file, "name", "an open file")))
        self.is_path = isinstance(self._file, Path)
        self.begin = 0 if isinstance(self._file, Path) else self._file.tell()
        with self.opened() as opened:
            self._check_magic(opened)
            self.identity = FileIdentity.of(opened)
            ptr = self._read_header(opened)
        self._own(Handle(f"GGUF {self.path.name}", ptr, lib.gguf_free))
        self._keys = {text_of(lib.gguf_get_key(ptr, i)): i for i in range(lib.gguf_get_n_kv(ptr))}
        self.version: int = lib.gguf_get_version(ptr)
        self.n_tensors: int = lib.gguf_get_n_tensors(ptr)
        self.data_offset: int = lib.gguf_get_data_offset(ptr)
        try:
            size, end = self.identity.size, self._end_of_tensors()
            if end > size:
                raise GGUFError(f"{self.path} is cut off: it has {size:,} bytes of {end:,}", log=recent_log())
        except BaseException:
            self.close()
            raise

    def _check_magic(self, file: BinaryIO) -> None:
        try:
            magic = file.read(len(_MAGIC))
        except OSError as error:  # that of a bad disk does not name the file
            error.filename = error.filename or str(self.path)
            raise
        if magic != _MAGIC:
            raise GGUFError(f"{self.path} is no GGUF file: it begins with {magic!r}")

    def _read_header(self, file: BinaryIO) -> Any:
        forget_log()
        params = ffi.new("struct gguf_init_params *", {"no_alloc": True, "ctx": ffi.NULL})
        with c_file(file, self.begin) as stream:
            return not_null(
                lib.gguf_init_from_file_ptr(stream, params[0]),
                lambda log: GGUFError(f"{self.path} is damaged or cut off: its header cannot be read", log=log),
                lib.gguf_free,
            )

    def _end_of_tensors(self) -> int:
        return max((tensor.offset + tensor.n_bytes for tensor in self.tensors()), default=0)

    def opened(self) -> AbstractContextManager[BinaryIO]:
        """Open the file once more, where the GGUF begins in it; the position of an open file stays where it is."""
        return reopened(self._file, self.begin)

    @contextmanager
    def unchanged(self) -> Iterator[BinaryIO]:
        """Open the file as ``opened`` does. Raises GGUFError where it has changed since its header was read."""
        with self.opened() as file:
            if FileIdentity.of(file) != self.identity:
                raise GGUFError(f"{self.path} has changed since it was opened")
            yield file

    def __getitem__(self, key: str) -> Value:
        index = self._keys[key]
        with self.handle as ptr:
            kind = lib.gguf_get_kv_type(ptr, index)
            if kind == lib.GGUF_TYPE_STRING:
                return text_of(lib.gguf_get_val_str(ptr, index))
            if kind != lib.GGUF_TYPE_ARRAY:
                value: Value = _scalars(kind, lib.gguf_get_val_data(ptr, index), 1)[0]
                return value
            kind = lib.gguf_get_arr_type(ptr, index)
            count = lib.gguf_get_arr_n(ptr, index)
            if kind == lib.GGUF_TYPE_STRING:
                return [text_of(lib.gguf_get_arr_str(ptr, index, i)) for i in range(count)]
            return _scalars(kind, lib.gguf_get_arr_data(ptr, index), count)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def array_length(self, key: str) -> int | None:
        """Return the number of entries of an array, without reading them; None for a value that is no array."""
        index = self._keys[key]
        with self.handle as ptr:
            if lib.gguf_get_kv_type(ptr, index) != lib.GGUF_TYPE_ARRAY:
                return None
            return int(lib.gguf_get_arr_n(ptr, index))

    def value_type(self, key: str) -> str:
        """Return the type of a value in the file, or of the entries of an array: "u32", "str", ..."""
        index = self._keys[key]
        with self.handle as ptr:
            kind = lib.gguf_get_kv_type(ptr, index)
            return text_of(
                lib.gguf_type_name(lib.gguf_get_arr_type(ptr, index) if kind == lib.GGUF_TYPE_ARRAY else kind)
            )

    def tensors(self) -> list[Tensor]:
        """Return the table of tensors; ``offset`` is from the beginning of the file, in bytes."""
        with self.handle as ptr:
            begin = self.data_offset
            found = []
            for i in range(self.n_tensors):
                ne = list(ffi.unpack(lib.gguf_get_tensor_ne(ptr, i), lib.GGML_MAX_DIMS))
                while len(ne) > 1 and ne[-1] == 1:
                    ne.pop()
                found.append(
                    Tensor(
                        name=text_of(lib.gguf_get_tensor_name(ptr, i)),
                        type=text_of(lib.ggml_type_name(lib.gguf_get_tensor_type(ptr, i))),
                        shape=tuple(ne),
                        n_bytes=lib.gguf_get_tensor_size(ptr, i),
                        offset=begin + lib.gguf_get_tensor_offset(ptr, i),
                    )
                )
            return found

    def fingerprint(self) -> str:
        """Return a digest of 32 hexadecimal digits: of the whole header, and of 12 KiB of each tensor.

        Samples are enough to tell models apart, as other weights differ everywhere.
        """
        import hashlib

        digest = hashlib.blake2b(digest_size=16)
        tensors = self.tensors()
        with self.handle, self.unchanged() as file:
            digest.update(file.read(self.data_offset - self.begin))
            for tensor in tensors:
                last = max(tensor.n_bytes - FINGERPRINT_SAMPLE_BYTES, 0)
                for begin in sorted({0, last // 2, last}):
                    file.seek(tensor.offset + begin)
                    digest.update(file.read(min(FINGERPRINT_SAMPLE_BYTES, tensor.n_bytes)))
        return digest.hexdigest()

    def copy(
        self,
        path: str | os.PathLike[str],
        changes: Mapping[str, Value] | None = None,
        *,
        remove: Iterable[str] = (),
        types: Mapping[str, str] | None = None,
    ) -> None:
        """Write a copy with other metadata. The tensors are copied byte for byte, a part of the file at a time.

        The copy gets its name when it is complete; until then, and after a failure, a file of that name stays as it was.

        Args:
            path: the copy; not this file.
            changes: values by key, of new keys or of keys of the file. A list is an array.
            remove: keys to leave out.
            types: types of changed values, or of an array's entries, in place of the default: a key of the file keeps
                its type, and a new one gets bool, str or f32, or, for an int, the first of u32, i32, u64 and i64 that
                holds it; in a list i32 is before u32.

        Raises:
            KeyError: a key of ``remove`` is not in the file, or one of ``types`` not in ``changes``.
            TypeError, ValueError: a value does not fit its type, or the key is ``general.alignment``, which says how the
                tensors lie. The message names the key.
            GGUFError: the file has changed since it was opened.
            OSError: from writing.
        """
        path = Path(path)
        changes, types, gone = dict(changes or {}), dict(types or {}), set(remove)
        self._check_changes(changes, gone, types)
        added = [
            encoded(key, types.get(key) or (self.value_type(key) if key in self else type_for(key, value)), value)
            for key, value in changes.items()
        ]
        with self.handle, self.unchanged() as source, replacing(path) as unfinished:
            if path.exists() and os.path.samestat(path.stat(), os.fstat(source.fileno())):
                raise ValueError(f"path must not be the file that is copied: {path}")
            with unfinished.open("xb") as target:
                self._write(source, target, added, gone | changes.keys())
            GGUF(unfinished).close()  # a copy that cannot be read must not take the name

    def _check_changes(self, changes: Mapping[str, Value], gone: set[str], types: Mapping[str, str]) -> None:
        if _ALIGNMENT in gone | changes.keys():
            raise ValueError(f"{_ALIGNMENT} says how the tensors lie, which a copy does not change")
        for name, unknown in (("remove", gone - self.keys()), ("types", types.keys() - changes.keys())):
            if unknown:
                raise KeyError(f"{name}: there is no {min(unknown)!r}")
        if both := gone & changes.keys():
            raise ValueError(f"{min(both)!r} cannot be both changed and removed")
        for kind in types.values():
            if kind not in TYPES:
                raise ValueError(f"types must be of {', '.join(TYPES)}, not {kind!r}")

    def copy_with(self, path: Path, other: GGUF, keys: Iterable[str]) -> None:
        """Write a copy with keys of another file as well, in the very bytes of that file."""
        with self.handle:
            added = other.encoded_keys(keys)
            with self.unchanged() as source, path.open("xb") as target:
                self._write(source, target, added, set())

    def encoded_keys(self, keys: Iterable[str]) -> list[bytes]:
        """Return keys and their values in the bytes of the file. Raises KeyError, or GGUFError as ``unchanged`` does."""
        with self.unchanged() as file:
            header = file.read(self.data_offset - self.begin)
        places, _ = positions(header)
        return [header[slice(*places[self._keys[key]])] for key in keys]

    def _write(self, source: BinaryIO, target: BinaryIO, added: list[bytes], gone: set[str]) -> None:
        header = source.read(self.data_offset - self.begin)
        places, (begin, end) = positions(header)
        out = {self._keys[key] for key in gone if key in self._keys}
        parts = [header[slice(*place)] for index, place in enumerate(places) if index not in out] + added
        alignment = self.get(_ALIGNMENT, lib.GGUF_DEFAULT_ALIGNMENT)
        head = b"".join([header[:8], struct.pack("<QQ", self.n_tensors, len(parts)), *parts, header[begin:end]])
        target.write(head + bytes(-len(head) % alignment))
        source.seek(self.data_offset)
        size = max(self._end_of_tensors() - self.data_offset, 0)
        left = size
        while left > 0:
            left -= target.write(source.read(min(left, COPY_CHUNK_BYTES)))
        target.write(bytes(-size % alignment))

    def check(self, kv_overrides: Mapping[str, bool | int | float | str] | None = None) -> None:
        """Raise GGUFError for a file on which llama.cpp would abort the process: the rules of ``gguf_preflight``.

        ``kv_overrides`` are values that a load takes in place of the file's.
        """
        metadata = Overridden(self, kv_overrides or {})
        gguf_preflight.check(self.path, gguf_preflight.Header(metadata, self.tensors(), self._repeated_token()))

    def _repeated_token(self) -> int | None:
        tokens = self._keys.get("tokenizer.ggml.tokens")
        if tokens is None:
            return None
        with self.handle as ptr:
            if lib.gguf_get_kv_type(ptr, tokens) != lib.GGUF_TYPE_ARRAY:
                return None
            if lib.gguf_get_arr_type(ptr, tokens) != lib.GGUF_TYPE_STRING:
                return None
            token: int = lib.og_gguf_repeated(ptr, tokens)
        return None if token < 0 else token


def _scalars(kind: int, data: Any, count: int) -> list[Any]:
    values = list(ffi.unpack(ffi.cast(f"{_SCALARS[kind]} *", data), count)) if count else []
    return [bool(value) for value in values] if kind == lib.GGUF_TYPE_BOOL else values

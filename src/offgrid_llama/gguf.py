"""GGUF files (gguf.h): metadata and tensors without loading a model, changed copies, and the checks that a load needs.

``GGUF`` reads the header only: keys, arrays and the table of tensors, no weights. ``GGUF.check()`` refuses what
llama.cpp would abort the process on; ``Model`` calls it before each load.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from ._callbacks import forget_log, recent_log
from ._capi import ffi, lib
from ._check import not_null, text_of
from ._handle import Handle, Owner
from .backend import start
from .errors import GGUFError
from .gguf_bytes import TYPES, encoded, positions, type_for
from .replacing import replacing

__all__ = ["GGUF", "Tensor", "Value", "c_file", "is_open_file"]

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS of llama-hparams.h: above them llama.cpp aborts
MAX_EXPERTS = 1024
MAX_VOCAB = 2**24  # of a model without a tokenizer llama.cpp makes up as many tokens, some 100 bytes each
MAX_HEADS = 2**16 - 1  # and values in a head: llama.cpp multiplies the two in 32 bits
_NO_WEIGHTS = frozenset({"i8", "i16", "i32", "i64", "f64", "q8_1", "q8_K"})  # ggml multiplies with none of these
_POOLING = {*range(lib.LLAMA_POOLING_TYPE_RANK + 1), 2**32 - 1}  # the last is -1, unspecified, as llama.cpp saves it
_TABLES = ("d2t", "d2t.weight", "tid2eid.weight")  # of token or expert ids
_SAMPLE_BYTES = 4096
_CHUNK = 16 * 1024 * 1024
_ROPE_SCALING = ("none", "linear", "yarn", "longrope")
_ALIGNMENT = "general.alignment"
SMALLEST = 24  # magic, version, number of tensors, number of keys

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

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]


@dataclass(frozen=True)
class Tensor:
    """One line of the table of tensors. ``shape`` is in ggml's order, the contiguous dimension first."""

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    offset: int

    @property
    def n_elements(self) -> int:
        """The product of ``shape``."""
        count = 1
        for size in self.shape:
            count *= size
        return count


class GGUF(Owner, Mapping[str, Value]):
    """The header of a GGUF file, as a read-only mapping from key to value (``gguf_init_from_file_ptr``).

    Args:
        file: a path, or a file that is open for reading in binary mode. An open file is read from its position, so that
            a GGUF inside of a larger file can be read; its position stays what it is.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: from opening the file.
        TypeError: an open file is in text mode, or is none of the operating system.
        GGUFError: it is no GGUF, its header is damaged, or it ends before its last tensor does.

    Attributes:
        path: the path, or what an open file calls itself. is_path: whether it is one.
        version: of the format. n_tensors: lines in the table of tensors.
        begin, data_offset: where the GGUF and its tensors begin in the file, in bytes.
    """

    def __init__(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        start()
        self._file: Path | BinaryIO = file if is_open_file(file) else Path(file)  # type: ignore[arg-type]
        self.path = self._file if isinstance(self._file, Path) else Path(str(getattr(file, "name", "an open file")))
        self.is_path = isinstance(self._file, Path)
        self.begin = 0 if isinstance(self._file, Path) else self._file.tell()
        with self.opened() as opened:
            try:
                magic = opened.read(4)
            except OSError as error:  # a bad disk does not say which file
                error.filename = error.filename or str(self.path)
                raise
            if magic != b"GGUF":
                raise GGUFError(f"{self.path} is no GGUF file: it begins with {magic!r}")
            self.identity = _identity(opened)
            size = os.fstat(opened.fileno()).st_size
            forget_log()
            params = ffi.new("struct gguf_init_params *", {"no_alloc": True, "ctx": ffi.NULL})
            with c_file(opened, self.begin) as stream:
                ptr = not_null(
                    lib.gguf_init_from_file_ptr(stream, params[0]),
                    lambda log: GGUFError(f"{self.path} is damaged or cut off: its header cannot be read", log=log),
                    lib.gguf_free,
                )
        self._own(Handle(f"GGUF {self.path.name}", ptr, lib.gguf_free))
        self._keys = {text_of(lib.gguf_get_key(ptr, i)): i for i in range(lib.gguf_get_n_kv(ptr))}
        self.version: int = lib.gguf_get_version(ptr)
        self.n_tensors: int = lib.gguf_get_n_tensors(ptr)
        self.data_offset: int = lib.gguf_get_data_offset(ptr)
        try:
            end = max((t.offset + t.n_bytes for t in self.tensors()), default=0)
            if end > size:
                raise GGUFError(f"{self.path} is cut off: it has {size:,} bytes of {end:,}", log=recent_log())
        except BaseException:
            self.close()
            raise

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open the file once more, where the GGUF begins in it; the position of an open file stays what it is."""
        if isinstance(self._file, Path):
            with self._file.open("rb") as file:
                yield file
            return
        theirs, shared = self._file.fileno(), None
        try:
            ours = os.open(f"/dev/fd/{theirs}", os.O_RDONLY | os.O_CLOEXEC)  # on Linux with a position of its own
        except OSError:
            ours, shared = os.dup(theirs), os.lseek(theirs, 0, os.SEEK_CUR)
        try:
            with open(ours, "rb") as file:
                file.seek(self.begin)
                yield file
        finally:
            if shared is not None:
                os.lseek(theirs, shared, os.SEEK_SET)

    @contextmanager
    def _same(self) -> Iterator[BinaryIO]:
        with self.opened() as file:
            if _identity(file) != self.identity:
                raise GGUFError(f"{self.path} has changed since it was opened")
            yield file

    def __getitem__(self, key: str) -> Value:
        index = self._keys[key]
        with self._handle as ptr:
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
        with self._handle as ptr:
            if lib.gguf_get_kv_type(ptr, index) != lib.GGUF_TYPE_ARRAY:
                return None
            return int(lib.gguf_get_arr_n(ptr, index))

    def value_type(self, key: str) -> str:
        """Return the type that a value has in the file, or that the entries of an array have: "u32", "str", ..."""
        index = self._keys[key]
        with self._handle as ptr:
            kind = lib.gguf_get_kv_type(ptr, index)
            return text_of(
                lib.gguf_type_name(lib.gguf_get_arr_type(ptr, index) if kind == lib.GGUF_TYPE_ARRAY else kind)
            )

    def tensors(self) -> list[Tensor]:
        """Return the table of tensors; ``offset`` is from the beginning of the file, in bytes."""
        with self._handle as ptr:
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
        """Return a digest, 32 hexadecimal digits, of the whole header and of 12 KiB of each tensor.

        Two files that a model could be taken for the other's have different ones: other weights differ everywhere.
        """
        import hashlib

        digest = hashlib.blake2b(digest_size=16)
        tensors = self.tensors()
        with self._handle, self._same() as file:
            digest.update(file.read(self.data_offset - self.begin))
            for tensor in tensors:
                last = max(tensor.n_bytes - _SAMPLE_BYTES, 0)
                for begin in sorted({0, last // 2, last}):
                    file.seek(tensor.offset + begin)
                    digest.update(file.read(min(_SAMPLE_BYTES, tensor.n_bytes)))
        return digest.hexdigest()

    def copy(
        self,
        path: str | os.PathLike[str],
        changes: Mapping[str, Value] | None = None,
        *,
        remove: Iterable[str] = (),
        types: Mapping[str, str] | None = None,
    ) -> None:
        """Write a copy with other metadata; the tensors are copied byte for byte, the file is never in memory as a whole.

        Under its name the copy is whole, or what was there before.

        Args:
            path: the copy; not this file.
            changes: values by key, new ones or others than the file's. A list is an array.
            remove: keys to leave out.
            types: the types of changed values, or of an array's entries, where they should not be the following: a key
                of the file keeps its type, and a new one gets bool, str or f32, or, for an int, the first of u32, i32,
                u64 and i64 that holds it; in a list i32 is before u32.

        Raises:
            KeyError: a key of ``remove`` is not in the file, or one of ``types`` not in ``changes``.
            TypeError, ValueError: a value does not fit its type, or the key is ``general.alignment``, which says how the
                tensors lie. The message names the key.
            GGUFError: the file has changed since it was opened.
            OSError: from writing.
        """
        path = Path(path)
        changes, types, remove = dict(changes or {}), dict(types or {}), set(remove)
        if _ALIGNMENT in remove | changes.keys():
            raise ValueError(f"{_ALIGNMENT} says how the tensors lie, which a copy does not change")
        for name, unknown in (("remove", remove - self.keys()), ("types", types.keys() - changes.keys())):
            if unknown:
                raise KeyError(f"{name}: there is no {min(unknown)!r}")
        if both := remove & changes.keys():
            raise ValueError(f"{min(both)!r} cannot be both changed and removed")
        for kind in types.values():
            if kind not in TYPES:
                raise ValueError(f"types must be of {', '.join(TYPES)}, not {kind!r}")
        added = [
            encoded(key, types.get(key) or (self.value_type(key) if key in self else type_for(key, value)), value)
            for key, value in changes.items()
        ]
        with self._handle, self._same() as source, replacing(path) as unfinished:
            if path.exists() and os.path.samestat(path.stat(), os.fstat(source.fileno())):
                raise ValueError(f"path must not be the file that is copied: {path}")
            with unfinished.open("xb") as target:
                self._write(source, target, added, remove | changes.keys())
            GGUF(unfinished).close()  # what cannot be read is not to take the name

    def copy_with(self, path: Path, other: GGUF, keys: Iterable[str]) -> None:
        """Write a copy that has keys of another file as well, with the very bytes that they have there."""
        with self._handle, other._same() as theirs:
            header = theirs.read(other.data_offset - other.begin)
            places, _ = positions(header)
            added = [header[slice(*places[other._keys[key]])] for key in keys]
            with self._same() as source, path.open("xb") as target:
                self._write(source, target, added, set())

    def _write(self, source: BinaryIO, target: BinaryIO, added: list[bytes], gone: set[str]) -> None:
        header = source.read(self.data_offset - self.begin)
        places, (begin, end) = positions(header)
        out = {self._keys[key] for key in gone if key in self._keys}
        parts = [header[slice(*place)] for index, place in enumerate(places) if index not in out] + added
        alignment = self.get(_ALIGNMENT, lib.GGUF_DEFAULT_ALIGNMENT)
        head = b"".join([header[:8], struct.pack("<QQ", self.n_tensors, len(parts)), *parts, header[begin:end]])
        target.write(head + bytes(-len(head) % alignment))
        last = max((tensor.offset + tensor.n_bytes for tensor in self.tensors()), default=self.data_offset)
        source.seek(self.data_offset)
        left = last - self.data_offset
        while left > 0:
            left -= target.write(source.read(min(left, _CHUNK)))
        target.write(bytes(-(last - self.data_offset) % alignment))

    @property
    def architecture(self) -> str:
        """The model's architecture, for instance ``llama``; empty when the file names none."""
        return _architecture(self)

    def hparam(self, name: str, default: int = 0) -> int:
        """Return the largest of ``<architecture>.<name>``, which may be one number or one for each layer."""
        return _hparam(self, name, default)

    def kv_heads(self) -> list[int]:
        """Return how many heads of each layer keep keys and values: 0 for a recurrent layer."""
        heads = self.get(f"{self.architecture}.attention.head_count_kv")
        if isinstance(heads, list):
            return [count for count in heads if isinstance(count, int)]
        count = self.hparam("attention.head_count_kv", self.hparam("attention.head_count"))
        every = max(self.hparam("full_attention_interval", 1), 1)
        return [0 if layer % every else count for layer in range(1, self.hparam("block_count") + 1)]

    def check(self, kv_overrides: Mapping[str, bool | int | float | str] | None = None) -> None:
        """Raise GGUFError for counts that llama.cpp would end the process over instead of refusing the file.

        ``kv_overrides`` are values that a load takes instead of the file's.
        """
        values: Mapping[str, Value] = ChainMap(dict(kv_overrides or {}), self)  # type: ignore[arg-type]
        architecture = _architecture(values)

        def hparam(name: str, default: int = 0) -> int:
            return _hparam(values, name, default)

        layers = hparam("block_count", 1)
        experts, used = hparam("expert_count"), hparam("expert_used_count")
        groups, groups_used = hparam("expert_group_count"), hparam("expert_group_used_count")
        rules: list[tuple[str, Value | None, bool]] = [
            ("block_count", layers, 1 <= layers <= MAX_LAYERS),
            ("nextn_predict_layers", (nextn := hparam("nextn_predict_layers")), 0 <= nextn <= layers),
            ("vocab_size", vocab_size := hparam("vocab_size"), 0 <= vocab_size <= MAX_VOCAB),
            ("expert_count", experts, 0 <= experts <= MAX_EXPERTS),
            ("expert_used_count", used, 0 < used <= experts if experts > 0 else used == 0),
            ("expert_group_count", groups, 0 <= groups < experts if experts > 0 else groups == 0),
            *(
                (f"attention.{name}", (size := hparam(f"attention.{name}")), 0 <= size <= MAX_HEADS)
                for name in ("head_count", "head_count_kv", "key_length", "value_length")
            ),
            ("pooling_type", (pooling := hparam("pooling_type")), pooling in _POOLING),
        ]
        if groups > 1:
            rules.append(("expert_group_count", groups, experts % groups == 0))
            rules.append(("expert_group_used_count", groups_used, 0 < groups_used < groups))
        if "rwkv" in architecture:  # llama.cpp writes the key into every file that it saves: 0 for all the others
            # ggml computes wkv7 in steps as wide as the processor's vectors, 64 values at most, over the end of a head.
            step = 64 if architecture.endswith("rwkv7") else 1
            rules.append(("wkv.head_size", head := hparam("wkv.head_size"), head > 0 and head % step == 0))
        if (scaling := values.get(f"{architecture}.rope.scaling.type")) is not None:
            rules.append(("rope.scaling.type", scaling, not isinstance(scaling, str) or scaling in _ROPE_SCALING))
        pattern = values.get(f"{architecture}.attention.sliding_window_pattern")
        if hparam("attention.sliding_window", 1):  # then a layer has to have one; 1 means that none has
            some = any(pattern) if isinstance(pattern, list) else pattern != 1
            rules.append(("attention.sliding_window_pattern", pattern, some))
        for name, value, good in rules:
            if not good:
                raise GGUFError(f"{self.path}: {architecture}.{name} = {value} is not possible")
        for tensor in self.tensors():
            added = tensor.name.endswith(("norm.weight", ".bias"))  # or multiplied one by one, which ggml does in f32
            if (tensor.type in _NO_WEIGHTS and not tensor.name.endswith(_TABLES)) or (added and tensor.type != "f32"):
                raise GGUFError(
                    f"{self.path}: {tensor.name} has the type {tensor.type}, which ggml cannot compute with"
                )
        tokens = self._keys.get("tokenizer.ggml.tokens", -1)
        with self._handle as ptr:
            if tokens >= 0 and lib.gguf_get_kv_type(ptr, tokens) == lib.GGUF_TYPE_ARRAY:
                strings = lib.gguf_get_arr_type(ptr, tokens) == lib.GGUF_TYPE_STRING
                repeated = lib.og_gguf_repeated(ptr, tokens) if strings else -1
                if repeated >= 0:
                    raise GGUFError(f"{self.path}: token {repeated} of tokenizer.ggml.tokens is there twice")
        kinds = values.get("tokenizer.ggml.token_type")
        if (
            values.get("tokenizer.ggml.model") == "bert"
            and isinstance(kinds, list)
            and lib.LLAMA_TOKEN_TYPE_BYTE in kinds
        ):
            raise GGUFError(f"{self.path}: a tokenizer.ggml.model of bert has no tokens for bytes")
        for key in values:
            if key.endswith("epsilon") and isinstance(epsilon := values[key], float) and not 0 <= epsilon < math.inf:
                raise GGUFError(f"{self.path}: {key} = {epsilon} is not possible")


def _architecture(values: Mapping[str, Value]) -> str:
    value = values.get("general.architecture", "")
    return value if isinstance(value, str) else ""


def _hparam(values: Mapping[str, Value], name: str, default: int) -> int:
    value = values.get(f"{_architecture(values)}.{name}", default)
    if isinstance(value, list):
        value = max((item for item in value if isinstance(item, int)), default=default)
    return value if isinstance(value, int) else default


def is_open_file(file: Any) -> TypeGuard[BinaryIO]:
    """Whether it is an open file. Raises TypeError for one that is in text mode, or that only looks like a file."""
    if not hasattr(file, "read") or isinstance(file, os.PathLike):
        return False
    if isinstance(file, io.TextIOBase):
        raise TypeError('the file must be open in binary mode, "rb"')
    try:
        file.fileno()
        file.tell()
    except (OSError, AttributeError):
        raise TypeError(
            f"{type(file).__name__} is no file of the operating system that llama.cpp could read; write it to one"
        ) from None
    return True


def _identity(file: BinaryIO) -> tuple[int, int, int, int]:
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


@contextmanager
def c_file(file: BinaryIO, position: int) -> Iterator[Any]:
    """Give a ``FILE *`` at a position of an open file, for as long as the block lasts. Nothing of it is needed later."""
    stream = lib.og_file_open(file.fileno(), position)
    if not stream:
        raise OSError(ffi.errno, os.strerror(ffi.errno), getattr(file, "name", None))
    try:
        yield stream
    finally:
        lib.og_file_close(stream)


def _scalars(kind: int, data: Any, count: int) -> list[Any]:
    values = list(ffi.unpack(ffi.cast(f"{_SCALARS[kind]} *", data), count)) if count else []
    return [bool(value) for value in values] if kind == lib.GGUF_TYPE_BOOL else values

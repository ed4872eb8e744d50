"""GGUF files (gguf.h): metadata and tensors without loading a model, and the checks that a load needs.

``GGUF`` reads the header only: keys, arrays and the table of tensors, no weights. ``GGUF.check()`` refuses what
llama.cpp would abort the process on; ``Model`` calls it before each load.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._callbacks import forget_log, recent_log
from ._capi import ffi, lib
from ._check import not_null, text_of
from ._handle import Handle, Owner
from .backend import start
from .errors import GGUFError

__all__ = ["GGUF", "Tensor"]

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS of llama-hparams.h: above them llama.cpp aborts
MAX_EXPERTS = 1024
MAX_HEADS = 2**16 - 1  # and values in a head: llama.cpp multiplies the two in 32 bits
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_ALIGNMENT = 32  # TENSOR_ALIGNMENT of ggml-impl.h, in bytes: ggml aborts on a mapped tensor that begins between
_NO_WEIGHTS = frozenset({"i8", "i16", "i32", "i64", "f64", "q8_1", "q8_K"})  # ggml multiplies with none of these
_TABLES = ("d2t", "d2t.weight", "tid2eid.weight")  # of token or expert ids
_SAMPLE_BYTES = 4096
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
    """The header of a GGUF file, as a read-only mapping from key to value (``gguf_init_from_file``).

    Args:
        path: the file.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: from opening the file.
        GGUFError: it is no GGUF, its header is damaged, or it ends before its last tensor does.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        start()
        self.path = Path(path)
        with self.path.open("rb") as file:
            try:
                magic = file.read(4)
            except OSError as error:  # a bad disk does not say which file
                error.filename = error.filename or str(self.path)
                raise
        if magic != b"GGUF":
            raise GGUFError(f"{self.path} is no GGUF file: it begins with {magic!r}")
        size = self.path.stat().st_size
        forget_log()
        params = ffi.new("struct gguf_init_params *", {"no_alloc": True, "ctx": ffi.NULL})
        ptr = not_null(
            lib.gguf_init_from_file(os.fsencode(self.path), params[0]),
            lambda log: GGUFError(f"{self.path} is damaged or cut off: its header cannot be read", log=log),
        )
        self._own(Handle(f"GGUF {self.path.name}", ptr, lib.gguf_free))
        self._keys = {text_of(lib.gguf_get_key(ptr, i)): i for i in range(lib.gguf_get_n_kv(ptr))}
        self.version: int = lib.gguf_get_version(ptr)
        self.n_tensors: int = lib.gguf_get_n_tensors(ptr)
        try:
            end = max((t.offset + t.n_bytes for t in self.tensors()), default=0)
            if end > size:
                raise GGUFError(f"{self.path} is cut off: it has {size:,} bytes of {end:,}", log=recent_log())
        except BaseException:
            self.close()
            raise

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

    def tensors(self) -> list[Tensor]:
        """Return the table of tensors; ``offset`` is from the beginning of the file, in bytes."""
        with self._handle as ptr:
            begin = lib.gguf_get_data_offset(ptr)
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
        with self._handle as ptr, self.path.open("rb") as file:
            digest.update(file.read(lib.gguf_get_data_offset(ptr)))
            for tensor in tensors:
                last = max(tensor.n_bytes - _SAMPLE_BYTES, 0)
                for begin in sorted({0, last // 2, last}):
                    file.seek(tensor.offset + begin)
                    digest.update(file.read(min(_SAMPLE_BYTES, tensor.n_bytes)))
        return digest.hexdigest()

    @property
    def architecture(self) -> str:
        """The model's architecture, for instance ``llama``; empty when the file names none."""
        value = self.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    def hparam(self, name: str, default: int = 0) -> int:
        """Return the largest of ``<architecture>.<name>``, which may be one number or one for each layer."""
        value = self.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list):
            value = max((item for item in value if isinstance(item, int)), default=default)
        return value if isinstance(value, int) else default

    def check(self) -> None:
        """Raise GGUFError for counts that llama.cpp would end the process over instead of refusing the file."""
        layers = self.hparam("block_count", 1)
        experts, used = self.hparam("expert_count"), self.hparam("expert_used_count")
        groups, groups_used = self.hparam("expert_group_count"), self.hparam("expert_group_used_count")
        rules = [
            ("block_count", layers, 1 <= layers <= MAX_LAYERS),
            ("nextn_predict_layers", (nextn := self.hparam("nextn_predict_layers")), 0 <= nextn <= layers),
            ("expert_count", experts, 0 <= experts <= MAX_EXPERTS),
            ("expert_used_count", used, 0 < used <= experts if experts > 0 else used == 0),
            ("expert_group_count", groups, 0 <= groups < experts if experts > 0 else groups == 0),
            *(
                (f"attention.{name}", (size := self.hparam(f"attention.{name}")), 0 <= size <= MAX_HEADS)
                for name in ("head_count", "head_count_kv", "key_length", "value_length")
            ),
            ("pooling_type", (pooling := self.hparam("pooling_type")), 0 <= pooling <= lib.LLAMA_POOLING_TYPE_RANK),
        ]
        if groups > 1:
            rules.append(("expert_group_count", groups, experts % groups == 0))
            rules.append(("expert_group_used_count", groups_used, 0 < groups_used < groups))
        for name, value, good in rules:
            if not good:
                raise GGUFError(f"{self.path}: {self.architecture}.{name} = {value} is not possible")
        scaling = self.get(f"{self.architecture}.rope.scaling.type", "none")
        if isinstance(scaling, str) and scaling not in ROPE_SCALINGS:
            raise GGUFError(
                f"{self.path}: {self.architecture}.rope.scaling.type must be one of {ROPE_SCALINGS}, not {scaling!r}"
            )
        tensors = self.tensors()
        if min((tensor.offset for tensor in tensors), default=0) % _ALIGNMENT:
            raise GGUFError(f"{self.path}: its tensors do not begin at a multiple of {_ALIGNMENT} bytes")
        for tensor in tensors:
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
        for key in self:
            if key.endswith("epsilon") and isinstance(epsilon := self[key], float) and not 0 <= epsilon < math.inf:
                raise GGUFError(f"{self.path}: {key} = {epsilon} is not possible")


def _scalars(kind: int, data: Any, count: int) -> list[Any]:
    values = list(ffi.unpack(ffi.cast(f"{_SCALARS[kind]} *", data), count)) if count else []
    return [bool(value) for value in values] if kind == lib.GGUF_TYPE_BOOL else values

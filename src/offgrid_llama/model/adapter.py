"""Adapters: other behaviour of a model with the same weights (``llama_adapter_*``).

A LoRA adds low-rank products to weight matrices. It belongs to a Model; a context uses any number of them, each with a scale
of its own. A ControlVector adds a direction to the output of each layer. It is plain data.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import AdapterError
from offgrid_llama.files.gguf import GGUF
from offgrid_llama.files.gguf_header import Tensor
from offgrid_llama.native.callbacks import forget_log
from offgrid_llama.native.check import not_null, number, string_of
from offgrid_llama.native.handle import Handle, Owner

if TYPE_CHECKING:
    import numpy.typing as npt

    from .model import Model

__all__ = ["ControlVector", "LoRA"]

_TENSOR_TYPES = frozenset({"f32", "f16", "bf16", "q8_0"})  # ggml multiplies with these
_KEY_TYPES: dict[str, type] = {
    "general.type": str, "general.architecture": str, "adapter.type": str, "adapter.lora.alpha": float,
}  # fmt: skip


class LoRAUser(Protocol):
    """The adapters that a context uses: a LoRA is taken away from them when it is closed."""

    def take_away(self, lora_ptr: Any) -> None:
        """Compute without this ``llama_adapter_lora *`` from now on."""


class LoRA(Owner):
    """A LoRA adapter of a model, loaded from a GGUF file (``llama_adapter_lora_init``). See ``context.set_loras``.

    ``close()`` takes it away from the contexts that use it. Closing the model closes it.

    Args:
        model: the Model that it was trained for; the adapter is its child.
        path: the GGUF file, as ``convert_lora_to_gguf.py`` of llama.cpp writes it.

    Raises:
        FileNotFoundError: the path has no file.
        GGUFError: the file is no GGUF, or is cut off.
        AdapterError: the file is no LoRA, or is for another model; the error carries llama.cpp's log.

    Attributes:
        model: the Model.
        path: the file.
        metadata: the file's scalar keys and their values, as str (``llama_adapter_meta_*``).
        invocation_tokens: the tokens that switch an activated LoRA (aLoRA, arXiv 2504.12397) on: an Engine uses it from
            these on, so that what comes before is computed once for all. Empty for a plain LoRA.
        fingerprint, users: internal. A digest of the file; the adapters of the contexts that use it.
    """

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        model.handle.check_open()
        self.model = model
        self.path = Path(path)
        with GGUF(self.path) as file:
            _check(file, model)
            self.fingerprint = file.fingerprint()
        forget_log()
        name = f"LoRA {self.path.name}"
        with model.handle as model_ptr:
            ptr = not_null(
                lib.llama_adapter_lora_init(model_ptr, os.fsencode(self.path)),
                lambda log: AdapterError(f"{self.path} is no adapter for {model.handle.name}", log=log),
                lib.llama_adapter_lora_free,
            )
            users: weakref.WeakSet[LoRAUser] = weakref.WeakSet()

            def free(ptr: Any) -> None:
                for user in tuple(users):
                    user.take_away(ptr)
                lib.llama_adapter_lora_free(ptr)

            self._own(Handle(name, ptr, free, model.handle))
        self.users = users
        with self.handle as ptr:
            self.metadata = {
                string_of(partial(lib.llama_adapter_meta_key_by_index, ptr, i)): string_of(
                    partial(lib.llama_adapter_meta_val_str_by_index, ptr, i)
                )
                for i in range(lib.llama_adapter_meta_count(ptr))
            }
            count = lib.llama_adapter_get_alora_n_invocation_tokens(ptr)
            tokens = lib.llama_adapter_get_alora_invocation_tokens(ptr)
            self.invocation_tokens: tuple[int, ...] = tuple(ffi.unpack(tokens, count)) if count else ()


def _check(file: GGUF, model: Model) -> None:
    """Raise AdapterError for an adapter that llama.cpp aborts on, when it loads it or when it computes with it."""
    for key, kind in _KEY_TYPES.items():
        value = file.get(key)
        if value is not None and not isinstance(value, kind):
            raise AdapterError(f"{file.path}: {key} must be a {kind.__name__}, not {value!r}")
    tensors = {tensor.name: tensor for tensor in file.tensors()}
    for name, tensor in tensors.items():
        if tensor.type not in _TENSOR_TYPES:
            allowed = ", ".join(sorted(_TENSOR_TYPES))
            raise AdapterError(f"{file.path}: {name} has the type {tensor.type}; it must be one of {allowed}")
        stem, _, part = name.rpartition(".")
        b, weight = tensors.get(f"{stem}.lora_b"), model.files.tensors.get(stem)
        if part == "lora_a" and b is not None and weight is not None:  # llama.cpp itself refuses an incomplete pair
            _check_pair(file.path, stem, tensor, b, weight)


def _check_pair(path: Path, stem: str, a: Tensor, b: Tensor, weight: Tensor) -> None:
    """Raise AdapterError unless the product of a pair has the shape of the weight."""
    rank = (a.shape[0], b.shape[0]) if stem == "token_embd.weight" else (a.shape[1:2], b.shape[:1])
    if rank[0] != rank[1] or not a.shape[2:] == b.shape[2:] == weight.shape[2:]:
        raise AdapterError(f"{path}: {a.name} {a.shape} and lora_b {b.shape} are no pair for {stem} {weight.shape}")


class ControlVector:
    """A direction for each of some layers (representation engineering); see ``context.set_control_vector``.

    Args:
        directions: float32[n_embd] by layer, from 1. Other layers get none.
    """

    def __init__(self, directions: Mapping[int, npt.ArrayLike]) -> None:
        import numpy as np

        self.directions: dict[int, npt.NDArray[np.float32]] = {}
        for layer, direction in directions.items():
            array = np.array(direction, dtype=np.float32)
            if array.ndim != 1 or not np.isfinite(array).all():
                raise ValueError(f"directions[{layer}] must be finite numbers in one dimension, not {array.shape}")
            self.directions[number("layer", layer, 1)] = array
        if len({len(array) for array in self.directions.values()}) != 1:
            raise ValueError("directions must be of one length, and there must be at least one")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ControlVector:
        """Read a GGUF file with tensors ``direction.N``, as llama.cpp's cvector-generator writes it.

        Raises GGUFError for a file that is no GGUF, AdapterError for one without directions.
        """
        import numpy as np

        found = {}
        with GGUF(path) as file:
            for tensor in file.tensors():
                stem, _, layer = tensor.name.rpartition(".")
                if stem != "direction" or not layer.isdigit() or layer == "0":
                    continue
                if tensor.type != "f32" or len(tensor.shape) != 1:
                    raise AdapterError(f"{path}: {tensor.name} must be f32 in one dimension")
                found[int(layer)] = np.fromfile(file.path, np.float32, tensor.n_elements, offset=tensor.offset)
        if not found:
            raise AdapterError(f"{path} has no tensors direction.1, direction.2, ...: it is no control vector")
        try:
            return cls(found)
        except ValueError as error:
            raise AdapterError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        return (
            f"<ControlVector of {len(next(iter(self.directions.values())))} values for {len(self.directions)} layers>"
        )

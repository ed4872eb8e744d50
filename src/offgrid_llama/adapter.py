"""Adapters: what changes a model's behaviour without changing its weights (``llama_adapter_*``).

A LoRA adds low-rank products to weight matrices; it belongs to a Model, and contexts use any number of them, each with a
scale of its own. A ControlVector adds a direction to what flows from layer to layer; it is plain data.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._callbacks import forget_log, recent_log
from ._capi import ffi, lib
from ._check import not_null, number, raise_caught, real, string_of
from ._handle import Handle, Owner
from .errors import AdapterError, ClosedError
from .gguf import GGUF

if TYPE_CHECKING:
    import numpy.typing as npt

    from .context import Context
    from .model import Model

__all__ = ["ControlVector", "LoRA"]

_TYPES = frozenset({"f32", "f16", "bf16", "q8_0"})  # what adapters are made of; of others ggml has no products


class LoRA(Owner):
    """A LoRA adapter of a model, loaded from a GGUF file (``llama_adapter_lora_init``). See ``context.set_loras``.

    Closing it takes it away from the contexts that use it. Closing the model closes it.

    Args:
        model: the Model that it was trained for; the adapter is its child.
        path: the GGUF file, as ``convert_lora_to_gguf.py`` of llama.cpp writes it.

    Raises:
        FileNotFoundError: there is no such file.
        GGUFError: it is no GGUF, or is cut off.
        AdapterError: it is no LoRA, or not one for this model; the error carries llama.cpp's log.

    Attributes:
        model: the Model.
        path: the file.
        metadata: the file's scalar keys and their values, as str (``llama_adapter_meta_*``).
        invocation_tokens: the tokens that switch an aLoRA on, empty for a plain one.
    """

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        model._handle.check_open()
        self.model = model
        self.path = Path(path)
        with GGUF(self.path) as file:
            _check(file, model)
            self._fingerprint = file.fingerprint()
        forget_log()
        name = f"LoRA {self.path.name}"
        with model._handle as model_ptr:
            ptr = not_null(
                lib.llama_adapter_lora_init(model_ptr, os.fsencode(self.path)),
                lambda log: AdapterError(f"{self.path} is no adapter for {model._handle.name}", log=log),
                lib.llama_adapter_lora_free,
            )
            users: weakref.WeakSet[Context] = weakref.WeakSet()

            def free(ptr: Any) -> None:
                for context in tuple(users):
                    _take_away(context, ptr)
                lib.llama_adapter_lora_free(ptr)

            self._own(Handle(name, ptr, free, model._handle))
        self._users = users
        with self._handle as ptr:
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
    """Raise for what llama.cpp aborts on while it loads an adapter, or when it computes with it."""
    wanted: dict[str, type] = {
        "general.type": str, "general.architecture": str, "adapter.type": str, "adapter.lora.alpha": float,
    }  # fmt: skip
    for key, kind in wanted.items():
        value = file.get(key)
        if value is not None and not isinstance(value, kind):
            raise AdapterError(f"{file.path}: {key} must be a {kind.__name__}, not {value!r}")
    tensors = {tensor.name: tensor for tensor in file.tensors()}
    weights = model._tensors
    for name, a in tensors.items():
        if a.type not in _TYPES:
            raise AdapterError(
                f"{file.path}: {name} has the type {a.type}; it must be one of {', '.join(sorted(_TYPES))}"
            )
        stem, _, part = name.rpartition(".")
        b, weight = tensors.get(f"{stem}.lora_b"), weights.get(stem)
        if part != "lora_a" or b is None or weight is None:
            continue  # llama.cpp says what is wrong, or nothing is
        rank = (a.shape[0], b.shape[0]) if stem == "token_embd.weight" else (a.shape[1:2], b.shape[:1])
        if rank[0] != rank[1] or not a.shape[2:] == b.shape[2:] == weight.shape[2:]:
            raise AdapterError(
                f"{file.path}: {name} {a.shape} and lora_b {b.shape} are no pair for {stem} {weight.shape}"
            )


class ControlVector:
    """One direction for each of some layers (representation engineering); see ``context.set_control_vector``.

    Args:
        directions: from layer, 1 and up, to float32[n_embd]; a layer that is not named gets none.
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

        Raises GGUFError for a file that is no GGUF, AdapterError for one that has no directions.
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


def set_loras(context: Context, loras: Mapping[LoRA, float] | Iterable[LoRA]) -> None:
    """Do what ``context.set_loras`` says."""
    wanted = dict(loras) if isinstance(loras, Mapping) else dict.fromkeys(loras, 1.0)
    for lora, scale in wanted.items():
        if not isinstance(lora, LoRA):
            raise TypeError(f"loras must be LoRA adapters, not {type(lora).__name__}")
        if lora.model is not context.model:
            raise ValueError(f"{lora._handle.name} is for {lora.model._handle.name}, not {context.model._handle.name}")
        wanted[lora] = real("scale", scale)
    with ExitStack() as stack:
        pointers = [stack.enter_context(lora._handle) for lora in wanted]
        with context._handle as ptr:
            before = dict(context._loras)
            for lora in wanted:
                lora._users.add(context)  # whoever closes it from now on takes it away first
            _use(context, ptr, {lora: (pointer, wanted[lora]) for lora, pointer in zip(wanted, pointers, strict=True)})
    del before  # here, as the finalizer of one that nobody else holds needs the context


def _use(context: Context, ptr: Any, loras: dict[LoRA, tuple[Any, float]]) -> None:
    pointers = ffi.new("struct llama_adapter_lora *[]", [pointer for pointer, _ in loras.values()])
    scales = ffi.new("float[]", [scale for _, scale in loras.values()])
    lib.llama_set_adapters_lora(ptr, pointers, len(loras), scales)
    raise_caught()
    context._loras.clear()
    context._loras.update(loras)
    sums: dict[str, float] = {}  # two adapters may be one file
    for lora, (_, scale) in loras.items():
        key = f"lora {lora._fingerprint}"
        sums[key] = sums.get(key, 0.0) + scale
    vectors = {key: scale for key, scale in context._adapters.items() if key.startswith("vector")}
    context._adapters = vectors | {key: scale for key, scale in sums.items() if scale}


def _take_away(context: Context, lora_ptr: Any) -> None:
    """Let a context go on without an adapter that is about to be freed."""
    with suppress(ClosedError), context._handle as ptr:
        _use(context, ptr, {lora: used for lora, used in context._loras.items() if used[0] != lora_ptr})


def set_control_vector(
    context: Context, vector: ControlVector | None, scale: float, first: int, last: int | None
) -> None:
    """Do what ``context.set_control_vector`` says."""
    import numpy as np

    if vector is not None and not isinstance(vector, ControlVector):
        raise TypeError(f"vector must be a ControlVector, not {type(vector).__name__}")
    n_layer, n_embd = context.model.n_layer, context.model.n_embd
    if n_layer < 2:
        raise AdapterError(f"{context.model._handle.name} has one layer: llama.cpp steers the second and later ones")
    last = number("last", n_layer - 1 if last is None else last, 1, n_layer - 1)
    first, scale = number("first", first, 1, last), real("scale", scale)
    # For every layer: of a shorter vector llama.h would leave the rest of the one before in place.
    data = np.zeros((n_layer - 1, n_embd), dtype=np.float32)
    for layer, direction in vector.directions.items() if vector is not None else ():
        if len(direction) != n_embd:
            raise ValueError(f"vector has {len(direction)} values, the model n_embd={n_embd}")
        if layer < n_layer:
            data[layer - 1] = scale * direction
    with context._handle as ptr:
        forget_log()
        source = ffi.from_buffer("float[]", data) if vector is not None else ffi.NULL
        if lib.llama_set_adapter_cvec(ptr, source, data.size, n_embd, first, last):
            raise_caught()
            raise AdapterError(f"{context._handle.name} did not take the control vector", log=recent_log())
        loras = {key: scale for key, scale in context._adapters.items() if key.startswith("lora")}
        digest = hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()
        context._adapters = loras | ({} if vector is None else {f"vector {digest} {first} {last}": scale})

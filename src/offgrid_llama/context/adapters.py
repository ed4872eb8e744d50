"""AdaptersInUse: the LoRA adapters and the control vector that a context computes with (``llama_set_adapter*``)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import AdapterError, ClosedError
from offgrid_llama.model.adapter import ControlVector, LoRA
from offgrid_llama.model.model import Model
from offgrid_llama.native.callbacks import forget_log, recent_log
from offgrid_llama.native.check import number, raise_caught, real
from offgrid_llama.native.handle import Handle
from offgrid_llama.native.kinds import listed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["AdaptersInUse", "LoRAsInUse"]

LoRAsInUse = dict[LoRA, tuple[Any, float]]
"""Pointer and scale of each LoRA. It keeps the LoRAs alive, as llama.h reads the pointers."""


class AdaptersInUse:
    """The adapters of one context. With its model's weights they decide its results.

    Args:
        model: the context's.
        handle: the context's.
        loras: an empty dict, which the context's end clears.

    Attributes:
        loras: the LoRA adapters in use.
        fingerprints: the scale of each adapter that changes results, by a digest of it; LoRAs of one file count together.
    """

    def __init__(self, model: Model, handle: Handle, loras: LoRAsInUse) -> None:
        self._model = model
        self._handle = handle
        self.loras = loras
        self.fingerprints: dict[str, float] = {}

    def set_loras(self, loras: Mapping[LoRA, float] | Iterable[LoRA]) -> None:
        """Do what ``Context.set_loras`` says."""
        wanted = dict(loras) if isinstance(loras, Mapping) else dict.fromkeys(listed("loras", loras, "LoRAs"), 1.0)
        for lora, scale in wanted.items():
            if not isinstance(lora, LoRA):
                raise TypeError(f"loras must be LoRA adapters, not {type(lora).__name__}")
            if lora.model is not self._model:
                raise ValueError(f"{lora.handle.name} is for {lora.model.handle.name}, not {self._model.handle.name}")
            wanted[lora] = real("scale", scale)
        with ExitStack() as stack:
            pointers = [stack.enter_context(lora.handle) for lora in wanted]
            with self._handle as ptr:
                before = dict(self.loras)
                for lora in wanted:
                    lora.users.add(self)  # a LoRA that is closed from now on is taken away first
                self._use(ptr, {lora: (pointer, wanted[lora]) for lora, pointer in zip(wanted, pointers, strict=True)})
        del before  # outside of the lock: the finalizer of a LoRA that nothing else holds takes it

    def take_away(self, lora_ptr: Any) -> None:
        """Go on without an adapter that is about to be freed."""
        with suppress(ClosedError), self._handle as ptr:
            self._use(ptr, {lora: used for lora, used in self.loras.items() if used[0] != lora_ptr})

    def _use(self, ptr: Any, loras: LoRAsInUse) -> None:
        pointers = ffi.new("struct llama_adapter_lora *[]", [pointer for pointer, _ in loras.values()])
        scales = ffi.new("float[]", [scale for _, scale in loras.values()])
        lib.llama_set_adapters_lora(ptr, pointers, len(loras), scales)
        raise_caught()
        self.loras.clear()
        self.loras.update(loras)
        sums: dict[str, float] = {}
        for lora, (_, scale) in loras.items():
            key = f"lora {lora.fingerprint}"
            sums[key] = sums.get(key, 0.0) + scale
        self._note("lora", {key: scale for key, scale in sums.items() if scale})

    def set_control_vector(self, vector: ControlVector | None, scale: float, first: int, last: int | None) -> None:
        """Do what ``Context.set_control_vector`` says."""
        if vector is not None and not isinstance(vector, ControlVector):
            raise TypeError(f"vector must be a ControlVector, not {type(vector).__name__}")
        n_layer, n_embd = self._model.n_layer, self._model.n_embd
        if n_layer < 2:
            raise AdapterError(f"{self._model.handle.name} has one layer: llama.cpp steers the second and later ones")
        last = number("last", n_layer - 1 if last is None else last, 1, n_layer - 1)
        first, scale = number("first", first, 1, last), real("scale", scale)
        data = _scaled_directions(vector, scale, n_layer, n_embd)
        with self._handle as ptr:
            forget_log()
            source = ffi.from_buffer("float[]", data) if vector is not None else ffi.NULL
            if lib.llama_set_adapter_cvec(ptr, source, data.size, n_embd, first, last):
                raise_caught()
                raise AdapterError(f"{self._handle.name} did not take the control vector", log=recent_log())
            digest = hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()
            self._note("vector", {} if vector is None else {f"vector {digest} {first} {last}": scale})

    def _note(self, kind: str, fingerprints: Mapping[str, float]) -> None:
        """Replace the fingerprints of one kind, "lora" or "vector", in a new dict: other threads read the old one."""
        others = {key: scale for key, scale in self.fingerprints.items() if not key.startswith(kind)}
        self.fingerprints = {**others, **fingerprints}


def _scaled_directions(
    vector: ControlVector | None, scale: float, n_layer: int, n_embd: int
) -> npt.NDArray[np.float32]:
    """Return float32[n_layer - 1, n_embd] for all layers but the first: llama.h keeps the old values of others."""
    import numpy as np

    data = np.zeros((n_layer - 1, n_embd), dtype=np.float32)
    for layer, direction in vector.directions.items() if vector is not None else ():
        if len(direction) != n_embd:
            raise ValueError(f"vector has {len(direction)} values, the model n_embd={n_embd}")
        if layer < n_layer:
            data[layer - 1] = scale * direction
    return data

"""memory_plan: the memory that a model and a context on it take, without loading or allocating either."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from offgrid_llama.files.model_files import ModelFiles
from offgrid_llama.native.backend import Device, start
from offgrid_llama.native.check import number
from offgrid_llama.native.enums import KVType
from offgrid_llama.store.consent import Download

from .loading import call_loader
from .params import ContextParams, ModelParams, default_n_ctx
from .placement import choose, place, simulate

__all__ = ["MemoryPlan", "memory_plan"]

MAX_N_CTX = 2**24
"""Positions of a planned context: the simulation keeps some 50 bytes for each."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on all devices together. ``weights`` is exact, the others are to 0.01 MiB.

    Attributes:
        weights: the tensors, as in the file. Mapped from it, they are shared with other processes. A backend that repacks
            tensors for its kernels has these in memory a second time.
        kv_cache: the KV cache or recurrent state of all sequences.
        compute: the buffers of the largest micro-batch.
        output: the rows of logits that a context begins with, ``n_seq_max``. The first decode that asks for more adds them.
        devices: the bytes on each device, by name; "CPU" is this machine's own memory. Shares of the KV cache are estimated
            as if all layers had the same. A table of embeddings that serves as the output, too, is on both devices, so that
            the sum may be above ``total``.
        n_gpu_layers, n_ctx, n_seq_max, type_k, type_v: as planned; llama.cpp may have rounded ``n_ctx`` up.
    """

    weights: int
    kv_cache: int
    compute: int
    output: int
    devices: dict[str, int]
    n_gpu_layers: int
    n_ctx: int
    n_seq_max: int
    type_k: KVType
    type_v: KVType

    @property
    def total(self) -> int:
        """The sum of the first four, in bytes."""
        return self.weights + self.kv_cache + self.compute + self.output


def memory_plan(
    model: str | os.PathLike[str],
    *,
    n_gpu_layers: int | Literal["auto"] = "auto",
    devices: Sequence[Device | str] | None = None,
    tensor_split: Sequence[float] | None = None,
    n_ctx: int | None = None,
    n_batch: int = 2048,
    n_ubatch: int = 512,
    n_seq_max: int = 1,
    n_outputs_max: int = 0,
    type_k: KVType = "f16",
    type_v: KVType = "f16",
    kv_unified: bool = False,
    swa_full: bool = True,
    embeddings: bool = False,
    download: Download = "auto",
) -> MemoryPlan:
    """Return the memory that ``Model(model)`` and a ``Context`` with these parameters take. No weights are read.

    The arguments are those of Model and Context, with the same defaults; ``n_ctx`` is at most 2**24. The plan may be for a
    larger machine than this one. Reading the vocabulary takes most of the time. A recurrent state is allocated for a moment,
    all else is simulated (``llama_model_load_from_file`` with ``no_alloc``, ``llama_init_from_model``).

    Raises:
        FileNotFoundError, UnknownModelError, GGUFError, ModelLoadError, BackendError: as Model does.
        ContextError: llama.cpp refused the parameters; the error carries its log.
    """
    options = {**locals()}  # each argument by its name
    start()
    files = ModelFiles(model, download)
    wanted = ModelParams.of(choose(devices), options)

    def context_params(n_ctx_train: int) -> ContextParams:
        n_positions = number("n_ctx", default_n_ctx(n_ctx_train) if n_ctx is None else n_ctx, 1, MAX_N_CTX)
        return ContextParams.of(n_ctx_train, {**options, "n_ctx": n_positions})

    with files.opened() as headers:
        for header in headers:
            header.check()
        sizes = files.sizes()
        load = partial(call_loader, headers)
        model_params = place(load, sizes, wanted, n_gpu_layers)
        simulation = simulate(load, sizes, model_params, context_params)
    return MemoryPlan(
        weights=simulation.weights, kv_cache=simulation.kv_cache, compute=simulation.compute, output=simulation.output,
        devices=simulation.devices, n_gpu_layers=model_params.n_gpu_layers,
        n_ctx=simulation.n_ctx, n_seq_max=n_seq_max, type_k=type_k, type_v=type_v,
    )  # fmt: skip

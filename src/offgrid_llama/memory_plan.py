"""memory_plan: the memory that a model and a context on it would take, without loading or allocating either."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ._check import number
from .backend import Device, start
from .model import _file, _load
from .params import ContextParams, ModelParams
from .placement import DEFAULT_N_CTX, choose, place, simulate
from .splits import opened_all

__all__ = ["MemoryPlan", "memory_plan"]

MAX_N_CTX = 2**24  # the simulation keeps a record of each cell, some 50 bytes


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, over all devices. ``weights`` is exact, the others are to 0.01 MiB.

    Attributes:
        weights: the tensors, as in the file. Mapped from it, they are shared with other processes. Those that a backend
            repacks for its kernels are in memory a second time.
        kv_cache: the KV cache or recurrent state of all sequences.
        compute: the buffers of the largest micro-batch.
        output: the rows of logits that a context begins with, ``n_seq_max``; it grows with the first decode that asks
            for more.
        devices: how much of all that is on each device, by name; "CPU" is this machine's own memory. Shares of the KV
            cache are as if each layer had the same. Embeddings that are used for the output as well are on both devices,
            so that the sum may be above ``total``.
        n_gpu_layers, n_ctx, n_seq_max, type_k, type_v: what was planned; llama.cpp may have rounded ``n_ctx`` up.
    """

    weights: int
    kv_cache: int
    compute: int
    output: int
    devices: dict[str, int]
    n_gpu_layers: int
    n_ctx: int
    n_seq_max: int
    type_k: str
    type_v: str

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
    type_k: str = "f16",
    type_v: str = "f16",
    kv_unified: bool = False,
    swa_full: bool = True,
    embeddings: bool = False,
) -> MemoryPlan:
    """Return what ``Model(model)`` and a ``Context`` with these parameters take. No weights are read.

    The arguments are those of Model and Context, with the same defaults; ``n_ctx`` is at most 2**24. The memory need not
    be there: a plan for a larger machine is fine. What takes time is the vocabulary. A recurrent state is allocated for a
    moment, all else is simulated (``llama_model_load_from_file`` with ``no_alloc``, ``llama_init_from_model``).

    Raises:
        FileNotFoundError, UnknownModelError, GGUFError, ModelLoadError, BackendError: as Model does.
        ContextError: llama.cpp refused the parameters; the error carries its log.
    """
    start()
    path = _file(model)
    shares = None if tensor_split is None else tuple(tensor_split)
    wished = ModelParams(devices=choose(devices), tensor_split=shares)

    def c_params(n_ctx_train: int) -> ContextParams:
        wanted = min(n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX) if n_ctx is None else n_ctx
        return ContextParams(
            n_ctx=number("n_ctx", wanted, 1, MAX_N_CTX), n_batch=n_batch, n_ubatch=n_ubatch, n_seq_max=n_seq_max,
            n_outputs_max=n_outputs_max, type_k=type_k, type_v=type_v, kv_unified=kv_unified, swa_full=swa_full,
            embeddings=embeddings,
        )  # fmt: skip

    with opened_all([path]) as headers:
        for header in headers:
            header.check()
        sizes = {tensor.name: tensor.n_bytes for header in headers for tensor in header.tensors()}
        load = partial(_load, headers)
        m_params = place(load, sizes, wished, n_gpu_layers)
        simulation = simulate(load, sizes, m_params, c_params)
    return MemoryPlan(
        weights=simulation.weights, kv_cache=simulation.kv_cache, compute=simulation.compute, output=simulation.output,
        devices=simulation.devices, n_gpu_layers=m_params.n_gpu_layers,
        n_ctx=simulation.n_ctx, n_seq_max=n_seq_max, type_k=type_k, type_v=type_v,
    )  # fmt: skip

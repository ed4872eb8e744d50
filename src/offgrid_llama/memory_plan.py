"""memory_plan: the memory that a model and a context on it would take, without loading or allocating either.

llama.cpp can simulate both (``llama_model_params.no_alloc``): it reads the header, builds the graphs and measures them.
The figures come out in its log and nowhere else in llama.h, rounded to 0.01 MiB, so that is where they are read here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from ._callbacks import whole_log
from ._capi import lib
from ._check import not_null, number
from .backend import has_gpu, start
from .errors import ContextError, ModelLoadError
from .model import _file
from .params import ContextParams, LoadMode, ModelParams
from .splits import opened_all

__all__ = ["MemoryPlan", "memory_plan"]

DEFAULT_N_CTX = 4096
MAX_N_CTX = 2**24  # the simulation keeps a record of each cell, some 50 bytes

_MIB = r"\s*([\d.]+) MiB"
_KV_CACHE = re.compile(rf"[:,] size ={_MIB}")  # the line of each cache; "KV buffer size" is 0 in a simulation
_COMPUTE = re.compile(rf"compute buffer size ={_MIB}")
_OUTPUT = re.compile(rf"output buffer size ={_MIB}")


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
        n_ctx, n_seq_max, type_k, type_v: what was planned; llama.cpp may have rounded ``n_ctx`` up.
    """

    weights: int
    kv_cache: int
    compute: int
    output: int
    n_ctx: int
    n_seq_max: int
    type_k: str
    type_v: str

    @property
    def total(self) -> int:
        """The sum of all four, in bytes."""
        return self.weights + self.kv_cache + self.compute + self.output


def memory_plan(
    model: str | os.PathLike[str],
    *,
    n_gpu_layers: int | Literal["auto"] = "auto",
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
        FileNotFoundError, UnknownModelError, GGUFError, ModelLoadError: as Model does.
        ContextError: llama.cpp refused the parameters; the error carries its log.
    """
    start()
    path = _file(model)
    with opened_all([path]) as headers:
        for header in headers:
            header.check()
    gpu_layers = (-1 if has_gpu() else 0) if n_gpu_layers == "auto" else n_gpu_layers
    c_model = ModelParams(n_gpu_layers=gpu_layers, load_mode=LoadMode.NONE).to_c()
    c_model.no_alloc = True
    with whole_log() as lines:
        model_ptr = not_null(
            lib.llama_model_load_from_file(os.fsencode(path), c_model),
            lambda log: ModelLoadError(f"{path} could not be loaded", log=log),
        )
        try:
            if n_ctx is None:
                n_ctx = min(lib.llama_model_n_ctx_train(model_ptr) or DEFAULT_N_CTX, DEFAULT_N_CTX)
            params = ContextParams(
                n_ctx=number("n_ctx", n_ctx, 1, MAX_N_CTX), n_batch=n_batch, n_ubatch=n_ubatch, n_seq_max=n_seq_max,
                n_outputs_max=n_outputs_max, type_k=type_k, type_v=type_v, kv_unified=kv_unified, swa_full=swa_full,
                embeddings=embeddings,
            )  # fmt: skip
            lines.clear()
            ptr = not_null(
                lib.llama_init_from_model(model_ptr, params.to_c()),
                lambda log: ContextError(f"no context with {_short(params)} could be planned for {path}", log=log),
            )
            n_ctx = lib.llama_n_ctx(ptr)
            lib.llama_free(ptr)
            log = "\n".join(line for _, line in lines)
            return MemoryPlan(
                weights=lib.llama_model_size(model_ptr),
                kv_cache=_bytes(_KV_CACHE, log),
                compute=_bytes(_COMPUTE, log),
                output=_bytes(_OUTPUT, log),
                n_ctx=n_ctx, n_seq_max=params.n_seq_max, type_k=params.type_k, type_v=params.type_v,
            )  # fmt: skip
        finally:
            lib.llama_model_free(model_ptr)


def _bytes(line: re.Pattern[str], log: str) -> int:
    return sum(round(float(mib) * 2**20) for mib in line.findall(log))


def _short(params: ContextParams) -> str:
    return f"n_ctx={params.n_ctx}, n_seq_max={params.n_seq_max}, type_k={params.type_k}, type_v={params.type_v}"

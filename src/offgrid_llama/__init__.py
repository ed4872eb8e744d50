"""Run llama.cpp models from Python: llama.h, hand-bound and guarded, with explicit ownership of memory.

>>> import offgrid_llama as og
>>> og.__version__
'0.1.0'
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import *  # noqa: F403 - errors.__all__ is the list
from .errors import __all__ as _errors

if TYPE_CHECKING:
    from . import rpc, store
    from . import sampling as samplers
    from .adapter import ControlVector, LoRA
    from .backend import Device, build_info, devices, numa_init
    from .batch import Batch
    from .chain import SamplerChain
    from .chat import ChatTemplate
    from .context import Context
    from .embedding import Embedder
    from .engine import Chat, ChatCompletion, Completion, Delta, Engine, EngineStats, FinishReason, Piece
    from .fast_sampling import FastSampler
    from .generate import Generation, generate
    from .gguf import GGUF
    from .grammar import Grammar
    from .imatrix import load_imatrix
    from .infill import infill
    from .logits import Logits
    from .memory import Memory
    from .memory_plan import MemoryPlan, memory_plan
    from .model import Model
    from .params import (
        AttentionType,
        FlashAttention,
        LazyMode,
        LoadMode,
        PoolingType,
        RopeScaling,
        RopeType,
        SplitMode,
        TokenAttr,
        VocabType,
    )
    from .perf import ContextPerf, SamplerPerf
    from .quantize import Quantized, quantize
    from .reranking import Ranked, Reranker
    from .sampling import Sampler
    from .sampling_params import SamplingParams
    from .state import Snapshot, State
    from .text import TextStream
    from .threadpool import ThreadPool
    from .vocab import Vocab

__version__ = "0.1.0"

__all__ = [
    "GGUF", "AttentionType", "Batch", "Chat", "ChatCompletion", "ChatTemplate", "Completion", "Context", "ContextPerf",
    "ControlVector", "Delta", "Device", "Embedder", "Engine", "EngineStats", "FastSampler", "FinishReason",
    "FlashAttention", "Generation", "Grammar", "LazyMode",
    "LoRA", "LoadMode", "Logits", "Memory", "MemoryPlan", "Model", "Piece", "PoolingType", "Quantized", "Ranked",
    "Reranker", "RopeScaling", "RopeType", "Sampler", "SamplerChain", "SamplerPerf", "SamplingParams", "Snapshot",
    "SplitMode", "State", "TextStream", "ThreadPool", "TokenAttr", "Vocab", "VocabType", "build_info", "devices",
    "generate", "infill", "load_imatrix", "memory_plan", "numa_init", "quantize", "rpc", "samplers", "store",
]  # fmt: skip
__all__ += _errors  # noqa: PLE0605


# Imported when they are first asked for: a process that only talks to others that run models needs no libllama.
_WHERE = {
    name: module
    for module, names in {
        "adapter": "ControlVector LoRA", "backend": "Device build_info devices numa_init", "batch": "Batch",
        "chain": "SamplerChain", "chat": "ChatTemplate", "context": "Context", "embedding": "Embedder",
        "engine": "Chat ChatCompletion Completion Delta Engine EngineStats FinishReason Piece",
        "fast_sampling": "FastSampler", "generate": "Generation generate", "gguf": "GGUF", "grammar": "Grammar",
        "imatrix": "load_imatrix", "infill": "infill", "logits": "Logits", "memory": "Memory",
        "memory_plan": "MemoryPlan memory_plan", "model": "Model",
        "params": "AttentionType FlashAttention LazyMode LoadMode PoolingType RopeScaling RopeType SplitMode TokenAttr "
        "VocabType",
        "perf": "ContextPerf SamplerPerf", "quantize": "Quantized quantize", "reranking": "Ranked Reranker",
        "rpc": "rpc", "sampling": "Sampler samplers", "sampling_params": "SamplingParams", "state": "Snapshot State",
        "store": "store", "text": "TextStream", "threadpool": "ThreadPool", "vocab": "Vocab",
    }.items()
    for name in names.split()
}  # fmt: skip
_MODULES = {"rpc", "samplers", "store"}


class _Package(ModuleType):
    """Keeps the functions that have the name of their module: each import of that would put the module in their place."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and _WHERE.get(name) == name and name not in _MODULES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f".{_WHERE[name]}", __name__)
    found = globals()[name] = module if name in _MODULES else getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

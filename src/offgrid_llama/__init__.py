"""Run llama.cpp models from Python: llama.h, hand-bound and guarded, with explicit ownership of memory.

>>> import offgrid_llama as og
>>> og.__version__
'0.1.0'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import rpc
from . import sampling as samplers
from .backend import Device, build_info, devices, numa_init
from .batch import Batch
from .chain import SamplerChain
from .context import Context
from .embedding import Embedder
from .errors import *  # noqa: F403 - errors.__all__ is the list
from .errors import __all__ as _errors
from .fast_sampling import FastSampler
from .generate import Generation, generate
from .gguf import GGUF
from .grammar import Grammar
from .infill import infill
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
from .quantize import Quantized, load_imatrix, quantize
from .reranking import Ranked, Reranker
from .sampling import Sampler
from .sampling_params import SamplingParams
from .text import TextStream
from .threadpool import ThreadPool
from .vocab import Vocab

if TYPE_CHECKING:
    from . import store
    from .adapter import ControlVector, LoRA
    from .chat import ChatTemplate
    from .engine import Chat, ChatCompletion, Completion, Delta, Engine, EngineStats, FinishReason, Piece
    from .logits import Logits
    from .state import Snapshot, State

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


_LATER = {
    "ChatTemplate": ".chat", "ControlVector": ".adapter", "LoRA": ".adapter", "Snapshot": ".state", "State": ".state",
    **dict.fromkeys(
        ("Chat", "ChatCompletion", "Completion", "Delta", "Engine", "EngineStats", "FinishReason", "Piece"), ".engine"
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Logits needs numpy, the store and State need json: imported when they are first asked for.
    if name == "store":
        import importlib

        return importlib.import_module(".store", __name__)
    if name == "Logits":
        from .logits import Logits

        return Logits
    if name in _LATER:
        import importlib

        return getattr(importlib.import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Run llama.cpp models from Python: llama.h, hand-bound and guarded, with explicit ownership of memory."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m offgrid_llama.cli` looks for its module
    from .start import forget_working_folder

    forget_working_folder()  # before the first import that could come from there

from typing import TYPE_CHECKING, Any

from .errors import *  # noqa: F403 - errors.__all__ is the list
from .errors import __all__ as _errors

if TYPE_CHECKING:
    from . import store
    from .chat.template.template import ChatTemplate
    from .chat.tools.deltas import CallDelta
    from .chat.tools.tool import Tool, ToolCall
    from .context.batch import Batch
    from .context.context import Context
    from .context.embedding_batch import EmbeddingBatch
    from .context.logits import Logits
    from .context.memory import Memory
    from .context.perf import ContextPerf, SamplerPerf
    from .context.state import Snapshot, State
    from .engine import (
        Answer,
        Chat,
        ChatArguments,
        ChatCompletion,
        ChatOptions,
        Completion,
        Delta,
        Engine,
        EngineStats,
        Piece,
        Score,
        ScoreArguments,
        StepView,
        Timings,
        TokenLogprobs,
        TurnArguments,
        Usage,
    )
    from .engine.transcription import Segment, Transcript, Transcription, transcribe
    from .files.gguf import GGUF
    from .files.imatrix import load_imatrix
    from .files.quantize import Quantized, quantize
    from .finish_reason import FinishReason
    from .media.audio import Audio
    from .media.chunk import MediaChunk
    from .media.image import Image
    from .media.projector import Projector
    from .model.adapter import ControlVector, LoRA
    from .model.memory_plan import MemoryPlan, memory_plan
    from .model.model import Model
    from .model.vocab import Vocab
    from .native import rpc
    from .native.backend import Device, build_info, devices, numa_init
    from .native.enums import (
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
    from .native.threadpool import ThreadPool
    from .sampling import samplers
    from .sampling.chain import SamplerChain
    from .sampling.fast_sampler import FastSampler
    from .sampling.grammar.grammar import Grammar
    from .sampling.sampler import Sampler
    from .sampling.sampling_params import SamplingParams
    from .tasks.embedding import Embedder
    from .tasks.generate import Generation, generate
    from .tasks.infill import fim_prompt, infill
    from .tasks.request_options import GenerationArguments, LogitsProcessor, RequestArguments, RequestOptions
    from .tasks.reranking import Ranked, Reranker
    from .tasks.speech import Speech, Synthesizer
    from .text.text_stream import TextStream

__version__ = "0.1.0"

__all__ = [
    "GGUF",
    "Answer",
    "AttentionType",
    "Audio",
    "Batch",
    "CallDelta",
    "Chat",
    "ChatArguments",
    "ChatCompletion",
    "ChatOptions",
    "ChatTemplate",
    "Completion",
    "Context",
    "ContextPerf",
    "ControlVector",
    "Delta",
    "Device",
    "Embedder",
    "EmbeddingBatch",
    "Engine",
    "EngineStats",
    "FastSampler",
    "FinishReason",
    "FlashAttention",
    "Generation",
    "GenerationArguments",
    "Grammar",
    "Image",
    "LazyMode",
    "LoRA",
    "LoadMode",
    "Logits",
    "LogitsProcessor",
    "MediaChunk",
    "Memory",
    "MemoryPlan",
    "Model",
    "Piece",
    "PoolingType",
    "Projector",
    "Quantized",
    "Ranked",
    "RequestArguments",
    "RequestOptions",
    "Reranker",
    "RopeScaling",
    "RopeType",
    "Sampler",
    "SamplerChain",
    "SamplerPerf",
    "SamplingParams",
    "Score",
    "ScoreArguments",
    "Segment",
    "Snapshot",
    "Speech",
    "SplitMode",
    "State",
    "StepView",
    "Synthesizer",
    "TextStream",
    "ThreadPool",
    "Timings",
    "TokenAttr",
    "TokenLogprobs",
    "Tool",
    "ToolCall",
    "Transcript",
    "Transcription",
    "TurnArguments",
    "Usage",
    "Vocab",
    "VocabType",
    "build_info",
    "devices",
    "fim_prompt",
    "generate",
    "infill",
    "load_imatrix",
    "memory_plan",
    "numa_init",
    "quantize",
    "rpc",
    "samplers",
    "store",
    "transcribe",
]  # fmt: skip
__all__ += _errors  # noqa: PLE0605


# Where each public name lives. It is imported when it is first asked for: a process that only sends requests to others needs
# no libllama. A name that stands for a module maps to that module.
_HOMES = {
    name: module
    for module, names in {
        "context.batch": "Batch", "context.context": "Context", "context.embedding_batch": "EmbeddingBatch",
        "context.logits": "Logits", "context.memory": "Memory",
        "context.perf": "ContextPerf SamplerPerf", "context.state": "Snapshot State",
        "chat.template.template": "ChatTemplate", "chat.tools.deltas": "CallDelta", "chat.tools.tool": "Tool ToolCall",
        "engine": "Answer Chat ChatArguments ChatCompletion ChatOptions Completion Delta Engine EngineStats Piece Score "
        "ScoreArguments StepView Timings TokenLogprobs TurnArguments Usage",
        "finish_reason": "FinishReason",
        "files.gguf": "GGUF", "files.imatrix": "load_imatrix", "files.quantize": "Quantized quantize",
        "media.audio": "Audio", "media.chunk": "MediaChunk", "media.image": "Image", "media.projector": "Projector",
        "model.adapter": "ControlVector LoRA", "model.memory_plan": "MemoryPlan memory_plan", "model.model": "Model",
        "native.enums": "AttentionType FlashAttention LazyMode LoadMode PoolingType RopeScaling RopeType SplitMode "
        "TokenAttr VocabType",
        "model.vocab": "Vocab",
        "native.backend": "Device build_info devices numa_init", "native.threadpool": "ThreadPool",
        "sampling.chain": "SamplerChain", "sampling.fast_sampler": "FastSampler", "sampling.grammar.grammar": "Grammar",
        "sampling.sampler": "Sampler", "sampling.sampling_params": "SamplingParams",
        "engine.transcription": "Segment Transcript Transcription transcribe",
        "tasks.embedding": "Embedder", "tasks.generate": "Generation generate", "tasks.infill": "fim_prompt infill",
        "tasks.request_options": "GenerationArguments LogitsProcessor RequestArguments RequestOptions",
        "tasks.reranking": "Ranked Reranker", "tasks.speech": "Speech Synthesizer",
        "text.text_stream": "TextStream",
    }.items()
    for name in names.split()
}  # fmt: skip
_MODULES = {"rpc": "native.rpc", "samplers": "sampling.samplers", "store": "store"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        found = importlib.import_module(f".{_MODULES[name]}", __name__)
    elif name in _HOMES:
        found = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The exceptions of offgrid_llama.

A wrong argument is a plain ``ValueError`` or ``TypeError`` that names the argument and its allowed range. Any other failure
is one of these, and ``except OffgridLlamaError`` catches them all::

    OffgridLlamaError
    ├── NativeError              a C++ exception that the guard around llama.h caught
    ├── ClosedError              an object was used after its close()
    ├── ForkError                the process was forked after llama.cpp had started
    ├── BackendError             no suitable backend (CPU, CUDA, ...) could be loaded
    ├── GGUFError                a file is no GGUF, is damaged, or is cut off
    ├── ModelLoadError           llama_model_load_from_file returned NULL
    │   └── LoadCancelled        the progress callback returned False
    ├── ModelSaveError           a model could not be saved or quantized
    ├── MediaError               a picture or a sound cannot be read, or the model does not take it
    ├── AdapterError             a file is no LoRA or control vector, or is for another model
    ├── ContextError             llama_init_from_model returned NULL, or there is too little memory
    ├── TokenizeError            llama_tokenize failed
    ├── DecodeError              llama_decode or llama_encode returned something other than 0
    │   ├── NoKVSlot             1: no room in the KV cache for this batch
    │   ├── Aborted              2: cancel(), close() or Ctrl-C stopped it
    │   ├── InvalidBatch         -1: llama.cpp refused the batch
    │   └── DecodeFailed         below -1: the computation failed
    ├── ContextLengthError       the prompt does not fit into the context
    ├── QueueFullError           the engine's queue is full
    ├── StateError               a saved state is damaged, does not fit the context, or could not be restored
    ├── StaleLogitsError         a view of logits was used after a later decode
    ├── GrammarError             a grammar does not parse, is over its limits, or refused a token
    ├── SamplerError             a sampler could not be made or gave no token
    ├── ChatTemplateError        a chat template is missing, broken or over its limits
    ├── ToolError                a tool call has no function, or pydantic is missing
    └── StoreError               a model name could not be turned into a file
        ├── UnknownModelError    neither a known name nor a file
        ├── DownloadError        the transfer failed
        └── ChecksumError        the file's sha256 is not the expected one
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = [
    "Aborted",
    "AdapterError",
    "BackendError",
    "ChatTemplateError",
    "ChecksumError",
    "ClosedError",
    "ContextError",
    "ContextLengthError",
    "DecodeError",
    "DecodeFailed",
    "DownloadError",
    "ForkError",
    "GGUFError",
    "GrammarError",
    "InvalidBatch",
    "LoadCancelled",
    "MediaError",
    "ModelLoadError",
    "ModelSaveError",
    "NativeError",
    "NoKVSlot",
    "OffgridLlamaError",
    "QueueFullError",
    "SamplerError",
    "StaleLogitsError",
    "StateError",
    "StoreError",
    "TokenizeError",
    "ToolError",
    "UnknownModelError",
]


_Error = TypeVar("_Error", bound=BaseException)


def restored(kind: type[_Error], args: tuple[Any, ...], attributes: Mapping[str, Any]) -> _Error:
    """Return an error of ``kind`` without a call of its ``__init__``, which may take other arguments than ``args``.

    ``BaseException`` pickles and copies an error as ``kind(*args)``. That fails for an error that is made of more than its
    message, and ``multiprocessing.Pool`` then waits for ever for the result of its worker.
    """
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class OffgridLlamaError(Exception):
    """Base of the exceptions below. ``log`` has the last lines that llama.cpp logged during the failed call."""

    def __init__(self, message: str, *, log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.log = log

    def __str__(self) -> str:
        if not self.log:
            return self.message
        return self.message + "\n" + "\n".join(f"  llama.cpp: {line}" for line in self.log)

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (type(self), self.args, self.__dict__)


class NativeError(OffgridLlamaError):
    """A C++ exception in a function of llama.h, caught by the guard.

    ``function`` is the C function's name, and ``what`` the exception's text.
    """

    def __init__(self, function: str, what: str, *, log: tuple[str, ...] = ()) -> None:
        super().__init__(f"{function}: {what}", log=log)
        self.function = function
        self.what = what


class ClosedError(OffgridLlamaError):
    """The object was closed, or its owner was. The message names it."""


class ForkError(OffgridLlamaError):
    """llama.cpp's threads do not survive fork(). Start the child with the "spawn" method instead."""


class BackendError(OffgridLlamaError):
    """No compute backend could be loaded, or not the one that was asked for."""


class GGUFError(OffgridLlamaError):
    """The file is no GGUF, is damaged or cut off, or has values on which llama.cpp would abort."""


class ModelLoadError(OffgridLlamaError):
    """The model could not be loaded. The message has the path; ``log`` has llama.cpp's reasons."""


class LoadCancelled(ModelLoadError):
    """The progress callback returned False."""


class ModelSaveError(OffgridLlamaError):
    """The model could not be saved or quantized. A file of the target's name stays as it was."""


class MediaError(OffgridLlamaError):
    """A picture or a sound is damaged, too large or of an unknown format, or the model's projector does not take it."""


class AdapterError(OffgridLlamaError):
    """The file is no LoRA or control vector, or does not fit the model."""


class ContextError(OffgridLlamaError):
    """The context could not be made: its parameters contradict each other, or there is too little memory."""


class TokenizeError(OffgridLlamaError):
    """The text could not be turned into tokens."""


class DecodeError(OffgridLlamaError):
    """``llama_decode`` or ``llama_encode`` returned ``code``.

    ``memory_restored`` says whether the context's memory is as it was before the call. Where it is False, the finished
    micro-batches stay: ``memory.positions(seq)`` tells how far each sequence got; remove their tokens, or go on from there.
    A recurrent or hybrid model forgets the batch's sequence, and all sequences if the batch had several.
    """

    code: int
    memory_restored: bool

    def __init__(self, message: str, *, code: int, memory_restored: bool, log: tuple[str, ...] = ()) -> None:
        super().__init__(message, log=log)
        self.code = code
        self.memory_restored = memory_restored


class NoKVSlot(DecodeError):
    """1: the KV cache has no room for the batch. Memory is as before. Remove sequences, or increase ``n_ctx``."""


class Aborted(DecodeError):
    """2: stopped by ``cancel()``, ``close()`` or Ctrl-C. Finished micro-batches stay in memory."""


class InvalidBatch(DecodeError):
    """-1: llama.cpp refused the batch, for instance for a gap in a sequence's positions. Memory is as before."""


class DecodeFailed(DecodeError):
    """Below -1: the computation failed. Finished micro-batches stay in memory."""


class ContextLengthError(OffgridLlamaError):
    """The prompt, with room for one more token, does not fit. Nothing was computed and nothing was dropped.

    ``n_tokens`` is the prompt's length and ``n_ctx`` the limit of one sequence, both in tokens. ``argument`` is what does
    not fit: "prompt", or for instance "texts[3]".
    """

    def __init__(self, message: str, *, n_tokens: int, n_ctx: int, argument: str = "prompt") -> None:
        super().__init__(message)
        self.argument = argument
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class QueueFullError(OffgridLlamaError):
    """The engine's queue is full, and the request was not queued. Try again later, or increase ``max_queue``.

    ``n_waiting`` is the number of requests that wait for a slot.
    """

    def __init__(self, message: str, *, n_waiting: int) -> None:
        super().__init__(message)
        self.n_waiting = n_waiting


class StaleLogitsError(OffgridLlamaError):
    """A later decode has overwritten the logits. Call ``copy()`` in the step that computed them."""


class StateError(OffgridLlamaError):
    """A saved state is damaged or cut off, is from another model or version, or could not be restored."""


class GrammarError(OffgridLlamaError):
    """The grammar does not parse, exceeds a limit, or was given a token that it does not allow."""


class SamplerError(OffgridLlamaError):
    """A sampler could not be made, or ended without a token."""


class ChatTemplateError(OffgridLlamaError):
    """The chat template is missing, does not render, or exceeds a limit."""


class ToolError(OffgridLlamaError):
    """A tool call has no function to call, or pydantic, which makes tools of functions, is not installed."""


class StoreError(OffgridLlamaError):
    """A model name could not be turned into a file."""


class UnknownModelError(StoreError):
    """The name is neither in the catalog nor a file."""


class DownloadError(StoreError):
    """The transfer failed. The message says why, and what to do. It is safe to try again."""


class ChecksumError(StoreError):
    """The file's sha256 is not the expected one. The file was deleted."""

"""Every exception that offgrid_llama raises for something other than a bad argument.

A wrong argument is a plain ``ValueError`` or ``TypeError`` that names the argument and its allowed range. Everything
else is one of these, and ``except OffgridLlamaError`` catches them all::

    OffgridLlamaError
    ├── NativeError              a C++ exception that the guard around llama.h caught
    ├── ClosedError              an object was used after its close()
    ├── ForkError                the process was forked after llama.cpp had started
    ├── BackendError             no backend (CPU, CUDA, ...) that fits could be loaded
    ├── GGUFError                a file is no GGUF, is damaged, or is cut off
    ├── ModelLoadError           llama_model_load_from_file returned NULL
    │   └── LoadCancelled        the progress callback asked to stop
    ├── ModelSaveError           a model could not be saved or quantized
    ├── AdapterError             a LoRA or control vector is none, or is for another model
    ├── ContextError             llama_init_from_model returned NULL, or the memory asked for is not there
    ├── TokenizeError            llama_tokenize could not give tokens
    ├── DecodeError              llama_decode or llama_encode returned something other than 0
    │   ├── NoKVSlot             1: no room in the KV cache for this batch
    │   ├── Aborted              2: cancel(), close() or Ctrl-C stopped it
    │   ├── InvalidBatch         -1: llama.cpp refused the batch
    │   └── DecodeFailed         below -1: the computation failed
    ├── ContextLengthError       the prompt does not fit into the context
    ├── QueueFullError           as many requests wait for the engine as may
    ├── StateError               a saved state is damaged, does not fit the context, or could not be restored
    ├── StaleLogitsError         a view of logits was used after a later decode
    ├── GrammarError             a grammar does not parse, is over its limits, or refused a token
    ├── SamplerError             a sampler could not be made or gave no token
    ├── ChatTemplateError        a chat template is missing, broken or over its limits
    ├── ToolError                a call of a tool has no function, or a conversation no way to make one
    └── StoreError               a model name could not be turned into a file
        ├── UnknownModelError    neither a known name nor a file
        ├── DownloadError        the transfer failed; what was fetched so far does no harm
        └── ChecksumError        the bytes that came are not the bytes that were asked for
"""

from __future__ import annotations

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


class OffgridLlamaError(Exception):
    """Base of every exception below. ``log`` holds the last lines that llama.cpp logged during the failed call."""

    def __init__(self, message: str, *, log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.log = log

    def __str__(self) -> str:
        if not self.log:
            return self.message
        return self.message + "\n" + "\n".join(f"  llama.cpp: {line}" for line in self.log)


class NativeError(OffgridLlamaError):
    """A C++ exception left a function of llama.h; the guard caught it. ``function`` is the C function's name."""

    def __init__(self, function: str, what: str, *, log: tuple[str, ...] = ()) -> None:
        super().__init__(f"{function}: {what}", log=log)
        self.function = function
        self.what = what


class ClosedError(OffgridLlamaError):
    """The object was closed, or its owner was. The message names it."""


class ForkError(OffgridLlamaError):
    """llama.cpp's threads do not survive fork(). Start the child with the "spawn" method instead."""


class BackendError(OffgridLlamaError):
    """No compute backend, or not the one asked for."""


class GGUFError(OffgridLlamaError):
    """The file is no GGUF, is damaged, is cut off, or carries values that llama.cpp would abort on."""


class ModelLoadError(OffgridLlamaError):
    """The model could not be loaded. The message has the path; ``log`` has llama.cpp's reasons."""


class LoadCancelled(ModelLoadError):
    """The progress callback returned False."""


class ModelSaveError(OffgridLlamaError):
    """The model could not be saved or quantized. Nothing is left under the name that it was to have."""


class AdapterError(OffgridLlamaError):
    """The file is no LoRA or control vector, or it does not fit the model."""


class ContextError(OffgridLlamaError):
    """The context could not be made: parameters that do not go together, or memory that is not there."""


class TokenizeError(OffgridLlamaError):
    """The text could not be turned into tokens."""


class DecodeError(OffgridLlamaError):
    """``llama_decode`` or ``llama_encode`` returned ``code``.

    ``memory_restored`` says whether the context's memory is what it was before the call. Where it is False the
    micro-batches that were finished stay: ask ``memory.positions(seq)`` how far each sequence got, then remove or go on.
    Of a recurrent or hybrid model the batch's sequence is forgotten, and if it had several then all are.
    """

    code: int
    memory_restored: bool

    def __init__(self, message: str, *, code: int, memory_restored: bool, log: tuple[str, ...] = ()) -> None:
        super().__init__(message, log=log)
        self.code = code
        self.memory_restored = memory_restored


class NoKVSlot(DecodeError):
    """1: the KV cache has no room for the batch. Memory is as before. Remove sequences, or make n_ctx larger."""


class Aborted(DecodeError):
    """2: stopped by ``cancel()``, ``close()`` or Ctrl-C. Finished micro-batches stay in memory."""


class InvalidBatch(DecodeError):
    """-1: llama.cpp refused the batch, for instance for a gap in a sequence's positions. Memory is as before."""


class DecodeFailed(DecodeError):
    """Below -1: the computation failed. Finished micro-batches stay in memory."""


class ContextLengthError(OffgridLlamaError):
    """The prompt, with room for one token more, does not fit. Nothing was computed and nothing was dropped.

    ``n_tokens`` is the prompt's length and ``n_ctx`` what one sequence may have, both in tokens.
    """

    def __init__(self, message: str, *, n_tokens: int, n_ctx: int) -> None:
        super().__init__(message)
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class QueueFullError(OffgridLlamaError):
    """The engine's queue is full: nothing was queued. Try again later, or make ``max_queue`` larger.

    ``n_waiting`` is how many requests wait for a slot.
    """

    def __init__(self, message: str, *, n_waiting: int) -> None:
        super().__init__(message)
        self.n_waiting = n_waiting


class StaleLogitsError(OffgridLlamaError):
    """The logits were overwritten by a later decode. Take ``copy()`` in the step that made them."""


class StateError(OffgridLlamaError):
    """A saved state is damaged or cut off, is another model's or version's, or could not be restored."""


class GrammarError(OffgridLlamaError):
    """The grammar does not parse, is over its limits, or was given a token that it does not allow."""


class SamplerError(OffgridLlamaError):
    """A sampler could not be made, or ended without a token."""


class ChatTemplateError(OffgridLlamaError):
    """The chat template is missing, does not render, or went over its limits."""


class ToolError(OffgridLlamaError):
    """A call of a tool has no function that could be called, or there is nothing to call it with."""


class StoreError(OffgridLlamaError):
    """A model name could not be turned into a file."""


class UnknownModelError(StoreError):
    """The name is in no catalog and is no file."""


class DownloadError(StoreError):
    """The transfer failed. The message says why and what to do; a second try starts cleanly."""


class ChecksumError(StoreError):
    """The file's sha256 is not the expected one. The file was thrown away."""

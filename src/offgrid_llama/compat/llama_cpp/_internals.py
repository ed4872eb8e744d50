"""LlamaModel, LlamaContext and LlamaBatch: the raw layer in classes, as unguarded as that is.

llama-cpp-python keeps them for itself, but its own tests and other packages use them. ``Llama`` has them as ``_model`` and
``_ctx``, on objects of this package that it owns itself.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from . import llama_cpp as raw
from ._samplers import CustomSampler, LlamaSampler

__all__ = [
    "CustomSampler", "LlamaBatch", "LlamaContext", "LlamaModel", "LlamaSampler", "LlamaTokenDataArray",
    "normalize_embedding",
]  # fmt: skip


def _on(attribute: str, function: str, convert: Callable[[Any], Any] = lambda found: found) -> Callable[..., Any]:
    """Return a method that calls a function of the raw layer on the pointer that an attribute holds."""

    def method(self: Any, *arguments: Any) -> Any:
        return convert(getattr(raw, function)(getattr(self, attribute), *arguments))

    method.__name__ = function
    method.__doc__ = f"Call ``{function}``."
    return method


def _text(found: bytes | None) -> str:
    return (found or b"").decode("utf-8", errors="replace")


class LlamaModel:
    """A model, by its pointer.

    Args:
        path_model: the path of a GGUF file. params: a ``llama_model_params``. verbose: kept, and not used.

    Raises ValueError where there is no such file, or llama.cpp refuses it.

    Attributes:
        model, vocab: the pointers, as int; None after ``close()``.
    """

    def __init__(self, *, path_model: str, params: Any, verbose: bool = True) -> None:
        if not os.path.exists(path_model):
            raise ValueError(f"Model path does not exist: {path_model}")
        model = raw.llama_model_load_from_file(os.fsencode(path_model), params)
        if not model:
            raise ValueError(f"Failed to load model from file: {path_model}")
        self._hold(model, path_model, params, verbose)
        self._free: Callable[[Any], object] | None = raw.llama_model_free

    def _hold(self, model: int, path_model: str, params: Any, verbose: bool) -> None:
        self.model: int | None = model
        self.vocab: int | None = raw.llama_model_get_vocab(model)
        self.path_model, self.params, self.verbose = path_model, params, verbose
        self._contexts: weakref.WeakSet[LlamaContext] = weakref.WeakSet()
        self._free = None

    @classmethod
    def borrowed(cls, model: int, path_model: str, params: Any, verbose: bool) -> LlamaModel:
        """Return the model of a pointer that its owner frees."""
        made = cls.__new__(cls)
        made._hold(model, path_model, params, verbose)
        return made

    def close(self) -> None:
        """Free the model and its contexts."""
        for context in list(getattr(self, "_contexts", ())):
            context.close()
        model, self.model = getattr(self, "model", None), None
        if model is not None and self._free is not None:
            self._free(model)

    def __del__(self) -> None:
        self.close()

    vocab_type = _on("vocab", "llama_vocab_type")
    n_vocab = _on("vocab", "llama_vocab_n_tokens")
    n_ctx_train = _on("model", "llama_model_n_ctx_train")
    n_embd = _on("model", "llama_model_n_embd")
    rope_freq_scale_train = _on("model", "llama_model_rope_freq_scale_train")
    size = _on("model", "llama_model_size")
    n_params = _on("model", "llama_model_n_params")
    token_get_text = _on("vocab", "llama_vocab_get_text", _text)
    token_get_score = _on("vocab", "llama_vocab_get_score")
    token_get_attr = _on("vocab", "llama_vocab_get_attr")
    token_bos = _on("vocab", "llama_vocab_bos")
    token_eos = _on("vocab", "llama_vocab_eos")
    token_cls = _on("vocab", "llama_vocab_bos")
    token_sep = _on("vocab", "llama_vocab_sep")
    token_nl = _on("vocab", "llama_vocab_nl")
    token_prefix = _on("vocab", "llama_vocab_fim_pre")
    token_middle = _on("vocab", "llama_vocab_fim_mid")
    token_suffix = _on("vocab", "llama_vocab_fim_suf")
    token_eot = _on("vocab", "llama_vocab_eot")
    add_bos_token = _on("vocab", "llama_vocab_get_add_bos")
    add_eos_token = _on("vocab", "llama_vocab_get_add_eos")

    def get_tensor(self, name: str) -> Any:
        """Raise NotImplementedError: llama.cpp gives no tensors."""
        raise NotImplementedError(f"llama.cpp gives no tensors, {name} neither")

    def desc(self) -> str:
        """Return the kind of model, such as ``llama 135M Q4_1``."""
        return self._read(partial(raw.llama_model_desc, self.model))

    def _read(self, call: Callable[[Any, int], int]) -> str:
        """Return the text that a function writes into a buffer, however long it is."""
        size = 1024
        while True:
            buffer = ctypes.create_string_buffer(size)
            wanted = call(buffer, size)
            if wanted < size:
                return _text(buffer.value)
            size = wanted + 1

    def metadata(self) -> dict[str, str]:
        """Return the scalar keys of the file and their values, as str."""
        of_key, of_value = raw.llama_model_meta_key_by_index, raw.llama_model_meta_val_str_by_index
        return {
            self._read(partial(of_key, self.model, i)): self._read(partial(of_value, self.model, i))
            for i in range(raw.llama_model_meta_count(self.model))
        }

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        """Return the tokens of a text."""
        n = len(text) + 8
        while True:
            tokens = (raw.llama_token * n)()
            found = raw.llama_tokenize(self.vocab, text, len(text), tokens, n, add_bos, special)
            if found >= 0:
                return list(tokens[:found])
            n = -found

    def token_to_piece(self, token: int, special: bool = False) -> bytes:
        """Return the bytes that a token stands for."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            found = raw.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if found >= 0:
                return buffer.raw[:found]
            size = -found

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """Return the bytes of tokens, without the space that follows a first token that begins a text."""
        pieces = [self.token_to_piece(token, special) for token in tokens]
        return without_first_space(b"".join(pieces), tokens, self.token_bos())

    @staticmethod
    def default_params() -> Any:
        """Return llama.cpp's own ``llama_model_params``."""
        return raw.llama_model_default_params()


def without_first_space(text: bytes, tokens: Sequence[int], bos: int) -> bytes:
    """Leave out the space that tokenizers of Llama 1's kind put in front of a text, where the text is a whole one."""
    return text[1:] if tokens and tokens[0] == bos and text[:1] == b" " else text


class LlamaContext:
    """A context, by its pointer.

    Args:
        model: the LlamaModel. params: a ``llama_context_params``. verbose: kept, and not used.

    Raises ValueError where llama.cpp refuses.

    Attributes:
        ctx, memory: the pointers, as int; ``ctx`` is None after ``close()``.
    """

    def __init__(self, *, model: LlamaModel, params: Any, verbose: bool = True) -> None:
        ctx = raw.llama_init_from_model(model.model, params)
        if not ctx:
            raise ValueError("Failed to create llama_context")
        self._hold(ctx, model, params, verbose)
        self._free: Callable[[Any], object] | None = raw.llama_free

    def _hold(self, ctx: int, model: LlamaModel, params: Any, verbose: bool) -> None:
        self.ctx: int | None = ctx
        self.memory: int | None = raw.llama_get_memory(ctx)
        self.model, self.params, self.verbose = model, params, verbose
        self._free = None
        model._contexts.add(self)

    @classmethod
    def borrowed(cls, ctx: int, model: LlamaModel, params: Any, verbose: bool) -> LlamaContext:
        """Return the context of a pointer that its owner frees."""
        made = cls.__new__(cls)
        made._hold(ctx, model, params, verbose)
        return made

    def close(self) -> None:
        """Free the context."""
        ctx, self.ctx = getattr(self, "ctx", None), None
        if ctx is not None and self._free is not None:
            self._free(ctx)

    def __del__(self) -> None:
        self.close()

    n_ctx = _on("ctx", "llama_n_ctx")
    pooling_type = _on("ctx", "llama_pooling_type")
    get_state_size = _on("ctx", "llama_state_get_size")
    set_n_threads = _on("ctx", "llama_set_n_threads")
    get_logits = _on("ctx", "llama_get_logits")
    get_logits_ith = _on("ctx", "llama_get_logits_ith")
    get_embeddings = _on("ctx", "llama_get_embeddings")
    get_embeddings_ith = _on("ctx", "llama_get_embeddings_ith")
    get_embeddings_seq = _on("ctx", "llama_get_embeddings_seq")
    reset_timings = _on("ctx", "llama_perf_context_reset")
    print_timings = _on("ctx", "llama_perf_context_print")

    def kv_cache_clear(self) -> None:
        """Forget all."""
        if self.memory:
            raw.llama_memory_clear(self.memory, True)

    def kv_cache_seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """Forget positions of a sequence; a negative ``seq_id`` is the first. Return whether that could be done."""
        return bool(raw.llama_memory_seq_rm(self.memory, max(seq_id, 0), p0, p1))

    kv_cache_seq_cp = _on("memory", "llama_memory_seq_cp")
    kv_cache_seq_keep = _on("memory", "llama_memory_seq_keep")
    kv_cache_seq_shift = _on("memory", "llama_memory_seq_add")

    def decode(self, batch: LlamaBatch) -> None:
        """Compute a batch; raise RuntimeError where llama.cpp returns an error."""
        _checked("llama_decode", raw.llama_decode(self.ctx, batch.batch))

    def encode(self, batch: LlamaBatch) -> None:
        """Compute a batch with the encoder; raise RuntimeError where llama.cpp returns an error."""
        _checked("llama_encode", raw.llama_encode(self.ctx, batch.batch))

    @staticmethod
    def default_params() -> Any:
        """Return llama.cpp's own ``llama_context_params``."""
        return raw.llama_context_default_params()


def _checked(name: str, code: int) -> None:
    if code:
        raise RuntimeError(f"{name} returned {code}")


class LlamaBatch:
    """The tokens of one decode.

    Args:
        n_tokens: the most tokens. embd: 0 for tokens. n_seq_max: the most sequences of a token.

    Attributes:
        batch: the ``llama_batch``; None after ``close()``.
    """

    def __init__(self, *, n_tokens: int, embd: int, n_seq_max: int, verbose: bool = True) -> None:
        self._n_tokens, self.embd, self.n_seq_max, self.verbose = n_tokens, embd, n_seq_max, verbose
        self.batch: Any = raw.llama_batch_init(n_tokens, embd, n_seq_max)

    def close(self) -> None:
        """Free the batch."""
        batch, self.batch = getattr(self, "batch", None), None
        if batch is not None:
            raw.llama_batch_free(batch)

    def __del__(self) -> None:
        self.close()

    def n_tokens(self) -> int:
        """Return the number of tokens in it."""
        return int(self.batch.n_tokens)

    def reset(self) -> None:
        """Empty it."""
        self.batch.n_tokens = 0

    def set_batch(self, batch: Sequence[int], n_past: int, logits_all: bool) -> None:
        """Make it the tokens of the first sequence behind ``n_past`` others, with logits for all, or for the last."""
        self.reset()
        self._add(batch, n_past, 0, logits_all)

    def add_sequence(self, batch: Sequence[int], seq_id: int, logits_all: bool) -> None:
        """Add the tokens of a sequence from its beginning on, with logits for all, or for the last."""
        self._add(batch, 0, seq_id, logits_all)

    def _add(self, tokens: Sequence[int], pos: int, seq_id: int, logits_all: bool) -> None:
        begin = self.n_tokens()
        if begin + len(tokens) > self._n_tokens:
            raise ValueError(f"the batch has room for {self._n_tokens - begin} tokens more, not for {len(tokens)}")
        for i, token in enumerate(tokens):
            row = begin + i
            self.batch.token[row] = token
            self.batch.pos[row] = pos + i
            self.batch.n_seq_id[row] = 1
            self.batch.seq_id[row][0] = seq_id
            self.batch.logits[row] = logits_all or i + 1 == len(tokens)
        self.batch.n_tokens = begin + len(tokens)


class LlamaTokenDataArray:
    """The candidates of a choice, with room for a whole vocabulary.

    Attributes:
        candidates: the ``llama_token_data_array``. candidates_data: the same numbers, as a NumPy recarray.
    """

    def __init__(self, *, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.candidates_data = np.recarray(
            (n_vocab,), dtype=np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)
        )
        self.default_candidates_data_id = np.arange(n_vocab, dtype=np.intc)
        self.default_candidates_data_p = np.zeros(n_vocab, dtype=np.single)
        self.candidates = raw.llama_token_data_array(
            data=self.candidates_data.ctypes.data_as(raw.llama_token_data_p), size=n_vocab, selected=-1, sorted=False
        )

    def copy_logits(self, logits: npt.NDArray[np.single]) -> None:
        """Begin anew with these logits, float32[n_vocab]."""
        self.candidates_data.id[:] = self.default_candidates_data_id
        self.candidates_data.logit[:] = logits
        self.candidates_data.p[:] = self.default_candidates_data_p
        self.candidates.size, self.candidates.sorted, self.candidates.selected = self.n_vocab, False, -1


def normalize_embedding(embedding: Sequence[float]) -> list[float]:
    """Return a vector scaled to length 1; one of zeros as it is."""
    norm = float(np.linalg.norm(embedding))
    return list(embedding) if norm == 0.0 else [value / norm for value in embedding]

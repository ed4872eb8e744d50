"""Llama: llama-cpp-python's class, on a Model, an Engine and an Embedder of this package.

Completions run on the Engine, so those of several threads run at once, and what texts begin with is computed once. What only
a Llama by itself can do, such as stopping criteria, runs as ``generate`` does, one call at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offgrid_llama.model.adapter import LoRA
from offgrid_llama.model.model import Model

from . import guarded, llama_chat_format, templates
from . import llama_cpp as raw
from ._internals import LlamaContext
from .completing import Completing, parallel
from .embedding import TextEmbedding
from .evaluating import longest_token_prefix
from .llama_cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from .llama_callbacks import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from .llama_grammar import LlamaGrammar
from .llama_state import LlamaState
from .llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer
from .options import context_options, model_options, padded
from .pretrained import downloaded

if TYPE_CHECKING:
    from .llama_speculative import LlamaDraftModel

__all__ = [
    "BaseLlamaCache", "BaseLlamaTokenizer", "Llama", "LlamaCache", "LlamaDiskCache", "LlamaGrammar", "LlamaRAMCache",
    "LlamaState", "LlamaTokenizer", "LogitsProcessor", "LogitsProcessorList", "StoppingCriteria", "StoppingCriteriaList",
]  # fmt: skip


class Llama(Completing, TextEmbedding):
    """A model, and what it writes. The arguments are those of llama-cpp-python 0.3.36.

    Args:
        model_path: the GGUF file.
        n_gpu_layers, split_mode, main_gpu, tensor_split, vocab_only, kv_overrides: see Model; -1 layers are all.
        use_mmap, use_mlock: how the file comes into memory.
        seed: of the first choice; completions without a seed draw theirs from it, one after the other.
        n_ctx: the most tokens of a text; 0 is the model's training length.
        n_batch: the most tokens of a decode. n_ubatch: of a micro-batch, where tokens are computed one after the other.
        n_threads, n_threads_batch: see Context; None is the number of physical cores.
        pooling_type: see Embedder. embedding: whether there are embeddings.
        rope_scaling_type, rope_freq_base, rope_freq_scale, attention_type, offload_kqv, op_offload, swa_full, type_k,
            type_v, no_perf: see Context. flash_attn: whether to use flash attention.
        logits_all: keep the logits behind each token, as ``scores`` and logprobs need.
        last_n_tokens_size: how many tokens count as repeated.
        lora_path, lora_scale: an adapter for all that it writes. lora_base: does nothing, there neither.
        chat_format, chat_handler: how conversations become prompts; None is the model's own template.
        draft_model: guesses tokens for ``generate``; with one the Engine guesses, too, by its own prompt lookup.
        tokenizer: in place of the model's own.
        spm_infill: the suffix comes first where a text is filled in.
        verbose: kept, and prints nothing: the log goes to the logger ``offgrid_llama``.
        kwargs: ``n_seq_max``, the most completions that run at once, which share a KV cache of ``n_ctx`` positions for each;
            by default 8, or fewer where that is over 16,384 positions or 1 GiB. Others are ignored.

    Raises ValueError for a file that is not there or an argument that cannot be used, and otherwise as Model and Context do.
    """

    def __init__(
        self,
        model_path: str,
        *,
        n_gpu_layers: int = 0,
        split_mode: int = 1,
        main_gpu: int = 0,
        tensor_split: list[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: dict[str, bool | int | float | str] | None = None,
        seed: int = 0xFFFFFFFF,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = -1,
        pooling_type: int = -1,
        attention_type: int = -1,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool = False,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float = 1.0,
        lora_path: str | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: Any = None,
        draft_model: LlamaDraftModel | None = None,
        tokenizer: BaseLlamaTokenizer | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        self._given, options = given, context_options(given)
        weights = self._weights = Model(model_path, **model_options(given))
        self.metadata: dict[str, str] = dict(weights.metadata)
        self.model_path, self.tensor_split, self.kv_overrides, self.numa = model_path, tensor_split, kv_overrides, numa
        self.lora_base, self.lora_scale, self.lora_path = lora_base, lora_scale, lora_path
        self.spm_infill, self.verbose, self.last_n_tokens_size = spm_infill, verbose, last_n_tokens_size
        self._seed = seed or raw.LLAMA_DEFAULT_SEED
        self._logits_all = logits_all or draft_model is not None
        self.draft_model, self.cache = draft_model, None
        n_ctx = n_ctx or weights.n_ctx_train
        self._n_ctx, self._n_vocab = padded(n_ctx), weights.vocab.n_tokens
        self.n_batch = min(n_ctx, n_batch)
        self._loras = {} if lora_path is None else {LoRA(weights, lora_path): lora_scale}
        self._begin(options, n_ubatch)
        self._n_parallel, self._lock = kwargs.get("n_seq_max") or parallel(weights, self._n_ctx), threading.RLock()
        self._model = guarded.model_of(weights, verbose)
        self.tokenizer_ = tokenizer or LlamaTokenizer(self)
        self.chat_handler, self._chat_handlers = chat_handler, templates.handlers_of(weights)
        self.chat_format = chat_format or (None if chat_handler else templates.format_of(self.metadata))
        self._is_recurrent, self._is_hybrid = weights.is_recurrent, weights.is_hybrid

    # Conversations ---------------------------------------------------------------------------------------------------

    def create_chat_completion(
        self,
        messages: list[Any],
        functions: list[Any] | None = None,
        function_call: Any = None,
        tools: list[Any] | None = None,
        tool_choice: Any = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | list[str] | None = None,
        seed: int | None = None,
        response_format: Any = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: dict[int, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Return the answer to a conversation, as OpenAI's chat completion; with ``stream`` an iterator of its parts.

        Args:
            messages: dicts with "role" and "content". tools, tool_choice: functions that the answer may call, or the one
                that it shall call. functions, function_call: their older form.
            response_format: ``{"type": "json_object"}``, with a "schema" if the JSON shall fit one.
            logprobs, top_logprobs: whether logprobs are told, and how many; takes ``logits_all``.

        The others are those of ``create_completion``.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        handler = (
            self.chat_handler
            or self._chat_handlers.get(self.chat_format or "")
            or llama_chat_format.get_chat_completion_handler(self.chat_format or "")
        )
        reply: dict[str, Any] | Iterator[dict[str, Any]] = handler(llama=self, **given)
        return reply

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """Return what ``create_chat_completion`` does as the package openai has it: a ChatCompletion, or its chunks."""
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk
        except ImportError as error:
            raise ImportError("create_chat_completion_openai_v1 needs a package: pip install openai") from error
        reply: Any = self.create_chat_completion(*args, **kwargs)
        return ChatCompletion(**reply) if isinstance(reply, dict) else (ChatCompletionChunk(**each) for each in reply)

    # Tokens ----------------------------------------------------------------------------------------------------------

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Return the tokens of a text, with ``special`` also those that are written in it, such as ``</s>``."""
        return self.tokenizer_.tokenize(text, add_bos, special)

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """Return the bytes of tokens; those of control tokens only with ``special``."""
        return self.tokenizer_.detokenize(tokens, prev_tokens=prev_tokens, special=special)

    def tokenizer(self) -> LlamaTokenizer:
        """Return the model's own tokenizer."""
        return LlamaTokenizer(self)

    def token_eos(self) -> int:
        """Return the token that ends a text; -1 where there is none."""
        return int(self._model.token_eos())

    def token_bos(self) -> int:
        """Return the token that begins a text; -1 where there is none."""
        return int(self._model.token_bos())

    def token_nl(self) -> int:
        """Return the token of a new line; -1 where there is none."""
        return int(self._model.token_nl())

    # The model -------------------------------------------------------------------------------------------------------

    def n_ctx(self) -> int:
        """Return the most tokens of a text."""
        return self._n_ctx

    def n_embd(self) -> int:
        """Return the width of embeddings."""
        return self._weights.n_embd

    def n_vocab(self) -> int:
        """Return the number of tokens in the vocabulary."""
        return self._n_vocab

    def pooling_type(self) -> int:
        """Return how the vectors of a text's tokens become one: a ``LLAMA_POOLING_TYPE_``."""
        return int((self._embedder if self._given["embedding"] else self._context).pooling_type)

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Keep the states of texts, and look for them. An Engine has a cache of its own, so this makes none faster."""
        self.cache = cache

    def set_seed(self, seed: int) -> None:
        """Set the seed of the next choice."""
        self._seed = seed

    @cached_property
    def _ctx(self) -> LlamaContext:
        if self._given["vocab_only"]:
            return LlamaContext(model=self._model, params=raw.llama_context_default_params(), verbose=self.verbose)
        return guarded.context_of(self._context, self._model)

    @property
    def ctx(self) -> int | None:
        """The ``llama_context *`` that ``eval`` computes with, for the raw layer."""
        return self._ctx.ctx

    @property
    def model(self) -> int | None:
        """The ``llama_model *``, for the raw layer."""
        return self._model.model

    @property
    def model_params(self) -> Any:
        """The model's parameters, as a struct of the raw layer."""
        return self._model.params

    @property
    def context_params(self) -> Any:
        """The parameters of the context that ``eval`` computes with, as a struct of the raw layer."""
        return self._ctx.params

    @property
    def n_threads(self) -> int:
        """Threads for one token."""
        return self._context.n_threads

    @property
    def n_threads_batch(self) -> int:
        """Threads for more than one token."""
        return self._context.n_threads_batch

    # Its life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the model, and all that computes with it."""
        made = self.__dict__
        for name in ("_ctx", "_model", "_engine", "_embedder", "_context", "_weights"):
            if name in made:
                made[name].close()

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the process
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self._given, "seed": self._seed, "n_seq_max": self._n_parallel}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # as a copy in another process begins

    @staticmethod
    def logits_to_logprobs(logits: npt.ArrayLike, axis: int = -1) -> npt.NDArray[np.single]:
        """Return the logarithms of the probabilities that logits stand for, float32."""
        array = np.asarray(logits, np.single)
        best = array.max(axis=axis, keepdims=True)
        shifted = array - np.where(np.isfinite(best), best, 0)
        with np.errstate(divide="ignore"):
            found: npt.NDArray[np.single] = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        return found

    longest_token_prefix = staticmethod(longest_token_prefix)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: list[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: Any = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """Download a model of the Hugging Face hub, and load it.

        Args:
            repo_id: the repository. filename: its file, or a pattern such as ``"*Q4_K_M.gguf"`` that fits one.
            additional_files: further ones, such as the other parts of a split model.
            local_dir, cache_dir: where they are kept. local_dir_use_symlinks: does nothing, as the hub no longer has it.
            kwargs: arguments of Llama.

        Raises ImportError without the package huggingface-hub, and ValueError where not exactly one file fits.
        """
        folders = (None if folder is None else Path(folder) for folder in (local_dir, cache_dir))
        return cls(downloaded(repo_id, filename, additional_files, *folders), **kwargs)

"""Completing: ``create_completion`` of a Llama, on an Engine where that can do it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offgrid_llama.engine.engine import Engine
from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.media.image import Image
from offgrid_llama.media.projector import Projector
from offgrid_llama.tasks.infill import fim_prompt

from .answering import Answering, OwnText, Written, told
from .evaluating import Evaluating, longest_token_prefix
from .llama_callbacks import LogitsProcessorList, StoppingCriteriaList, StopTokens
from .sampling import ARGUMENTS, Processor, sampling_params

if TYPE_CHECKING:
    from offgrid_llama.engine.prompt_logprobs import TokenLogprobs
    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.model.model import Model

    from .llama_cache import BaseLlamaCache
    from .llama_grammar import LlamaGrammar

__all__ = ["Completing", "parallel"]

N_PARALLEL = 8
"""Completions that run at once, as long as their KV cache has no more than these positions and bytes."""
MAX_POSITIONS, MAX_CACHE_BYTES = 16_384, 2**30
STREAM_INTERVAL = 1 / 30
"""Seconds between two parts of a stream: the tokens between them are computed in one call."""


def parallel(model: Model, n_ctx: int) -> int:
    """Return how many completions may run at once with texts of ``n_ctx`` tokens: one at least."""
    width = model.n_embd * model.n_head_kv / max(model.n_head, 1)  # of a token's keys in a layer, and of its values
    position_bytes = max(2 * 2 * width * model.n_layer, 1)
    return max(1, min(N_PARALLEL, MAX_POSITIONS // n_ctx, int(MAX_CACHE_BYTES / position_bytes) // n_ctx))


class Completing(Evaluating):
    """The part of a Llama that answers prompts.

    Attributes:
        cache: keeps states of texts, if one is set.
    """

    cache: BaseLlamaCache | None
    model_path: str
    spm_infill: bool
    _loras: dict[LoRA, float]
    _n_parallel: int
    _projector: Projector | None = None
    _lock: threading.RLock
    tokenize: Callable[..., list[int]]
    detokenize: Callable[..., bytes]

    @cached_property
    def _engine(self) -> Engine:
        n_seq = self._n_parallel
        return Engine(
            self._weights, n_ctx=n_seq * self._n_ctx, n_seq_max=n_seq, stream_interval=STREAM_INTERVAL,
            n_batch=max(self.n_batch, n_seq + 1), loras=self._loras, projector=self._projector, **self._options,
        )  # fmt: skip

    def use_projector(self, path: str, *, use_gpu: bool = True) -> None:
        """Let prompts have pictures, by the projector in a file. The first time ends the completions that run."""
        with self._lock:
            if self._projector is not None and self._projector.path == Path(path):
                return
            self._projector = Projector(self._weights, path, use_gpu=use_gpu)
            engine = self.__dict__.pop("_engine", None)
            if engine is not None:
                engine.close()

    def create_completion(
        self,
        prompt: str | list[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | list[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: dict[int, float] | None = None,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Return what follows a prompt, as OpenAI's completion; with ``stream`` an iterator of its parts.

        Args:
            prompt: text, or token ids as they are. suffix: what follows the answer; a model that can fill in reads it.
            max_tokens: the most tokens; None, 0 and less are as many as fit.
            temperature, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty, mirostat_mode,
                mirostat_tau, mirostat_eta: see SamplingParams. A temperature below 0 draws from all tokens.
            logprobs: how many of the most probable tokens are told at each place; takes ``logits_all``.
            echo: begin the text with the prompt, and the logprobs with its tokens; a stream does not.
            stop: strings that end the text, without being part of it.
            seed: of the choices; None draws one from the Llama's.
            tfs_z: does nothing, there neither.
            model: the name that the answer tells; None is the path.
            stopping_criteria, logits_processor: functions of (token ids, logits).
            grammar, logit_bias: what may come, and numbers to add to logits.

        Raises ValueError for a prompt that does not fit into ``n_ctx``, and for ``logprobs`` without ``logits_all``.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        if stream:
            return self._streamed(given)
        answering, pieces = self._started(given)
        reply = answering.whole(pieces, echo=echo)
        self._ended(answering, pieces)
        return reply

    __call__ = create_completion

    def _streamed(self, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        answering, pieces = self._started(given)
        yield from answering.chunks(pieces)
        self._ended(answering, pieces)

    def _started(self, given: Mapping[str, Any]) -> tuple[Answering, Written]:
        """Return a completion that has begun, and its pieces."""
        answering = self._answering(given)
        if given["logprobs"] is not None and not self._logits_all:
            raise ValueError("logprobs is not supported for models created with logits_all=False")
        n = self._most_tokens(answering, given["max_tokens"])
        stop = [given["stop"]] if isinstance(given["stop"], str) else [each for each in given["stop"] or () if each]
        self._seed = random.Random(self._seed).randint(0, 2**32) if given["seed"] is None else given["seed"]  # noqa: S311
        arguments = {**given, "temp": given["temperature"]}
        criteria = [each for each in given["stopping_criteria"] or () if not self._ends_anyway(each)]
        if answering.pictures and criteria:
            raise ValueError("stopping_criteria: not for prompts with pictures; stop takes texts")
        if criteria or (self.cache is not None and not answering.pictures):
            return answering, self._by_itself(answering, arguments, n, stop, StoppingCriteriaList(criteria))
        return answering, self._by_engine(answering, arguments, n, stop)

    def _most_tokens(self, answering: Answering, wanted: int | None) -> int:
        """Return how many tokens the answer may have; raise ValueError where there is no room for one."""
        room = self._n_ctx - len(answering.tokens)
        if room <= 0:
            raise ValueError(f"Requested tokens ({len(answering.tokens)}) exceed context window of {self._n_ctx}")
        n = room if wanted is None or wanted <= 0 else min(wanted, room)
        return max(n - len(answering.first), 1)

    def _by_engine(self, answering: Answering, arguments: Mapping[str, Any], n: int, stop: list[str]) -> Written:
        params = sampling_params(
            arguments, seed=self._seed, last_n=self.last_n_tokens_size, grammar=arguments["grammar"],
            logit_bias=arguments["logit_bias"],
        )  # fmt: skip
        processors: LogitsProcessorList | None = arguments["logits_processor"]
        return self._engine.submit(
            answering.asked, max_tokens=n, stop=stop, sampling=params, logprobs=arguments["logprobs"],
            prompt_logprobs=arguments["logprobs"] if arguments["echo"] else None,
            logits_processors=[_on_arrays(each) for each in processors or ()],
            lookup=self.draft_model is not None or arguments["grammar"] is not None,  # larger batches are rounded otherwise
        )  # fmt: skip

    def _by_itself(
        self,
        answering: Answering,
        arguments: Mapping[str, Any],
        n: int,
        stop: list[str],
        criteria: StoppingCriteriaList,
    ) -> Written:
        if self.cache is not None:
            self._look_up(self.cache, answering.tokens)
        processors = LogitsProcessorList(arguments["logits_processor"] or ())
        if arguments["logit_bias"]:
            processors.append(_adding(arguments["logit_bias"]))
        tokens = self.generate(
            answering.tokens, **{name: arguments[name] for name in ARGUMENTS}, logits_processor=processors,
            stopping_criteria=criteria or None, grammar=arguments["grammar"],
        )  # fmt: skip
        tell = None if answering.logprobs is None else self._teller(answering.logprobs)
        return OwnText(tokens, self._weights.vocab, stop, n, answering.tokens, tell)

    def _teller(self, n_top: int) -> Callable[[int, Sequence[int]], list[TokenLogprobs]]:
        def tell(at: int, tokens: Sequence[int]) -> list[TokenLogprobs]:
            return [told(self._logits[at + i - 1], token, n_top) for i, token in enumerate(tokens)]

        return tell

    def _look_up(self, cache: BaseLlamaCache, tokens: list[int]) -> None:
        """Go on from the state of the cache that begins as the prompt does, where that is more than what is there."""
        try:
            found = cache[tokens]
        except KeyError:
            return
        kept = found.input_ids[: found.n_tokens]
        if longest_token_prefix(kept, tokens) > longest_token_prefix(self._input_ids, tokens):
            self.load_state(found)

    def _ended(self, answering: Answering, pieces: Written) -> None:
        """Make the text of the answer the one that ``eval`` goes on from, and keep it in the cache."""
        if answering.pictures:  # ``eval`` knows no pictures
            with self._lock:
                self.n_tokens = 0
            return
        text = answering.tokens + answering.written
        if answering.reason is FinishReason.LENGTH or pieces.stop is not None:
            text.pop()  # it was drawn, and not computed
        if self.cache is not None:
            self.cache[answering.tokens + answering.written] = self.save_state()
            return
        with self._lock:
            self.input_ids[: len(text)] = text
            self.n_tokens, self._requires_eval = len(text), True

    def _ends_anyway(self, criterion: Any) -> bool:
        """Return whether a criterion waits for tokens that end a text anyway."""
        return isinstance(criterion, StopTokens) and set(criterion.stop_token_ids) <= self._weights.vocab.eog_tokens()

    def _answering(self, given: Mapping[str, Any]) -> Answering:
        """Read the prompt."""
        vocab, prompt, suffix = self._weights.vocab, given["prompt"], given["suffix"]
        if suffix is not None and not isinstance(suffix, str):
            raise AssertionError(f"suffix must be str, not {type(suffix).__name__}")
        pictures = [] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, Image)]
        told = prompt if not pictures else [part for part in prompt if not isinstance(part, Image)]
        text = told if isinstance(told, str) else self.detokenize(told).decode("utf-8", errors="ignore")
        answering = Answering(vocab, given["model"] or self.model_path, text, [], given["logprobs"])
        if suffix is not None and None not in (vocab.fim_pre, vocab.fim_suf, vocab.fim_mid):
            answering.tokens = fim_prompt(vocab, text, suffix, spm_infill=self.spm_infill)
            return answering
        answering.suffix = suffix or ""
        if pictures:
            answering.pictures, answering.tokens = prompt, self._with_room(prompt)
            return answering
        answering.tokens = self._tokens_of(prompt)
        if prompt == "" and vocab.bos is not None:
            answering.first = [vocab.bos]
        return answering

    def _with_room(self, prompt: Sequence[int | Image]) -> list[int]:
        """Return a prompt with as many tokens in the place of each picture as it takes."""
        if self._projector is None:
            raise ValueError("prompt: pictures need a chat_handler with a clip_model_path")
        found: list[int] = []
        for part in prompt:
            found += [0] * self._projector.n_tokens(part) if isinstance(part, Image) else [int(part)]
        return found

    def _tokens_of(self, prompt: str | list[int]) -> list[int]:
        """Return the tokens of a prompt, with those that begin and end a text where the model wants them."""
        if not isinstance(prompt, str):
            return [int(token) for token in prompt]
        vocab = self._weights.vocab
        begin = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
        end = [vocab.eos] if vocab.add_eos and vocab.eos is not None else []
        middle = self.tokenize(prompt.encode("utf-8"), add_bos=False, special=True) if prompt else []
        return [*begin, *middle, *end]


def _on_arrays(processor: Processor) -> Callable[[Sequence[int], npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """Return a function for an Engine, which gives lists of token ids."""
    return lambda tokens, logits: processor(np.asarray(tokens, np.intc), logits)


def _adding(logit_bias: Mapping[int, float]) -> Processor:
    """Return a function that adds to logits."""
    tokens = [int(token) for token in logit_bias]
    numbers = [float(number) for number in logit_bias.values()]

    def add(_tokens: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        logits[tokens] += numbers
        return logits

    return add

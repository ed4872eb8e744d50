"""Evaluating: ``eval``, ``sample``, ``generate``, ``scores`` and states of a Llama, on a context of its own.

The context is made when it is first needed, as completions run on an Engine. What it holds may lag behind ``input_ids``: an
Engine has written the text, a state was loaded, or a program has set ``n_tokens``. So each use catches up first: it keeps
what both begin with, and computes the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offgrid_llama.context.batch import Batch
from offgrid_llama.context.context import Context
from offgrid_llama.context.state import State

from .llama_callbacks import LogitsProcessorList, StoppingCriteriaList
from .llama_state import LlamaState
from .sampling import ARGUMENTS, Chooser, sampling_params

if TYPE_CHECKING:
    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.model.model import Model

    from .llama_grammar import LlamaGrammar
    from .llama_speculative import LlamaDraftModel

__all__ = ["Evaluating", "longest_token_prefix"]


def longest_token_prefix(a: Sequence[int] | npt.NDArray[np.intc], b: Sequence[int] | npt.NDArray[np.intc]) -> int:
    """Return how many tokens both begin with."""
    n = min(len(a), len(b))
    differ = np.asarray(a[:n]) != np.asarray(b[:n])
    return int(differ.argmax()) if differ.any() else n


class Evaluating:
    """The part of a Llama that computes tokens one after the other.

    Attributes:
        n_tokens: how many of ``input_ids``, int32[n_ctx], are the text so far.
    """

    n_batch: int
    last_n_tokens_size: int
    draft_model: LlamaDraftModel | None
    _logits_all: bool
    _loras: dict[LoRA, float]
    _n_ctx: int
    _n_vocab: int
    _seed: int
    _weights: Model

    def _begin(self, options: dict[str, Any], n_ubatch: int) -> None:
        """Take the keywords of Context, without its sizes, and the size of a micro-batch."""
        self._options, self._n_ubatch = options, min(self.n_batch, n_ubatch)
        self.n_tokens = 0
        self.input_ids: npt.NDArray[np.intc] = np.zeros(self._n_ctx, np.intc)
        self._held = self.input_ids[:0]  # the tokens whose computation the context holds
        self._requires_eval = True  # the context's last row is not that of the last token
        self._chooser: Chooser | None = None

    @cached_property
    def _context(self) -> Context:
        context = Context(
            self._weights, n_ctx=self._n_ctx, n_batch=self.n_batch, n_ubatch=self._n_ubatch, **self._options
        )
        context.set_loras(self._loras)
        return context

    @cached_property
    def _logits(self) -> npt.NDArray[np.single]:
        return np.zeros((self._n_ctx if self._logits_all else self.n_batch, self._n_vocab), np.single)

    @property
    def scores(self) -> npt.NDArray[np.single]:
        """The logits behind each token, float32[n_ctx, n_vocab] with ``logits_all``.

        Without it float32[n_batch, n_vocab], of which only the row of the last token is there.
        """
        if self.n_tokens and self._logits_all:
            self._catch_up()
        return self._logits

    @property
    def _input_ids(self) -> npt.NDArray[np.intc]:
        return self.input_ids[: self.n_tokens]

    @property
    def _scores(self) -> npt.NDArray[np.single]:
        return self.scores[: self.n_tokens, :]

    @property
    def eval_tokens(self) -> deque[int]:
        """The text so far."""
        return deque(self._input_ids.tolist(), maxlen=self._n_ctx)

    @property
    def eval_logits(self) -> deque[list[float]]:
        """The rows of ``scores`` of the text so far; without ``logits_all`` the last one."""
        return deque(self._scores.tolist(), maxlen=self._n_ctx if self._logits_all else 1)

    def reset(self) -> None:
        """Begin with an empty text."""
        self.n_tokens = 0
        self._requires_eval = True

    def eval(self, tokens: Sequence[int]) -> None:
        """Compute tokens behind the text so far.

        Raises ValueError where they do not fit into ``n_ctx``.
        """
        tokens = [int(token) for token in tokens]
        if self.n_tokens + len(tokens) > self._n_ctx:
            raise ValueError(f"{self.n_tokens} tokens and {len(tokens)} more exceed context window of {self._n_ctx}")
        self._catch_up()
        self._compute(tokens)
        self.input_ids[self.n_tokens : self.n_tokens + len(tokens)] = tokens
        self.n_tokens += len(tokens)
        self._requires_eval = self._requires_eval and not tokens

    def _catch_up(self) -> None:
        """Make the context hold the text so far, and nothing else."""
        text = self._input_ids
        same = longest_token_prefix(self._held, text)
        if same == len(self._held) == len(text):
            return
        if same < len(self._held) and not (same and self._context.memory.remove(0, same)):
            self._context.memory.clear()
            same = 0
        self._held = self._held[:same]
        if same < len(text):
            self._compute(text[same:].tolist())
            self._requires_eval = False

    def _refresh(self) -> None:
        """Catch up, and compute the last token again where the context has no logits of it."""
        self._catch_up()
        if self._requires_eval:
            self.n_tokens -= 1
            self.eval([int(self.input_ids[self.n_tokens])])

    def _compute(self, tokens: list[int]) -> None:
        """Compute tokens behind those that the context holds."""
        for begin in range(0, len(tokens), self.n_batch):
            part, at = tokens[begin : begin + self.n_batch], len(self._held)
            batch = Batch(len(part))
            batch.add_sequence(part, at, logits="all" if self._logits_all else "last")
            self._context.decode(batch)
            self._held = np.append(self._held, np.asarray(part, np.intc))
            for row in batch.rows:
                if at + row < len(self._logits):
                    self._logits[at + row] = self._context.logits(row)

    def _sampler(
        self, arguments: dict[str, Any], grammar: LlamaGrammar | None, processors: LogitsProcessorList | None
    ) -> Chooser:
        params = sampling_params(arguments, seed=self._seed, last_n=self.last_n_tokens_size, grammar=grammar)
        return Chooser(self._weights.vocab, params, processors or ())

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        idx: int | None = None,
    ) -> int:
        """Return a token that may follow the text so far, or its first ``idx + 1`` tokens, where their logits are there.

        In a loop over ``generate`` the arguments are those of that.
        """
        arguments = {name: value for name, value in locals().items() if name in ARGUMENTS}
        if not self.n_tokens:
            raise AssertionError("sample() follows eval(): there is no text yet")
        self._refresh()
        own = self._chooser is None
        chooser = self._chooser or self._sampler(arguments, grammar, logits_processor)
        try:
            return chooser.choose(self._context, -1 if idx is None else idx - self.n_tokens, self._input_ids)
        finally:
            if own:
                chooser.close()

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        grammar: LlamaGrammar | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield tokens that follow ``tokens``, without an end. Tokens that are sent to it follow the one it has yielded.

        With ``reset`` the text is ``tokens``: what it begins with already is not computed again. Without it they follow the
        text so far. The generator owns the Llama until it is closed.
        """
        arguments = {name: value for name, value in locals().items() if name in ARGUMENTS}
        chooser = self._chooser = self._sampler(arguments, grammar, logits_processor)
        pending = self._begun([int(token) for token in tokens]) if reset else [int(token) for token in tokens]
        at = self.n_tokens + len(pending) - 1
        try:
            while True:
                self.eval(pending)
                while at < self.n_tokens:
                    token = self.sample(idx=at)
                    at += 1
                    if stopping_criteria is not None and stopping_criteria(self.input_ids[:at], self._row(at - 1)):
                        return
                    sent = yield token
                    pending = [token, *(sent or ())]
                    if at < self.n_tokens and token != self.input_ids[at]:  # a wrong guess
                        self.n_tokens = at
                        break
                pending += self._guesses(pending)
        finally:
            chooser.close()
            if self._chooser is chooser:
                self._chooser = None

    def _begun(self, tokens: list[int]) -> list[int]:
        """Make the text what it has in common with ``tokens``; return the rest of these."""
        same = longest_token_prefix(self._input_ids, tokens)
        if not same:
            self.reset()
        elif same < self.n_tokens:
            self.n_tokens, self._requires_eval = same, True
        return tokens[same:]

    def _row(self, at: int) -> npt.NDArray[np.single]:
        """Return the logits behind the token at an index of the text, from the last decode."""
        return self._context.logits(at - self.n_tokens).copy()

    def _guesses(self, pending: list[int]) -> list[int]:
        """Return what the draft model expects to follow, as far as it fits."""
        if self.draft_model is None:
            return []
        end = self.n_tokens + len(pending)
        if end > self._n_ctx:
            return []
        self.input_ids[self.n_tokens : end] = pending
        guessed: list[int] = self.draft_model(self.input_ids[:end]).astype(int).tolist()
        return guessed[: self._n_ctx - end]

    def save_state(self) -> LlamaState:
        """Return the text so far with its computation."""
        self._catch_up()
        state = bytes(self._context.save_state(0, self._input_ids.tolist()))
        scores = self._logits[: self.n_tokens] if self._logits_all else self._logits[:0]
        return LlamaState(
            self.input_ids.copy(), scores.copy(), self.n_tokens, state, llama_state_size=len(state), seed=self._seed
        )

    def load_state(self, state: LlamaState) -> None:
        """Go on from a state that a Llama with the same model and the same arguments has saved.

        Raises StateError for another one.
        """
        loaded = State.from_bytes(state.llama_state)
        self._context.load_state(loaded, 0)
        self.input_ids = np.zeros(self._n_ctx, np.intc)
        n = min(len(state.input_ids), self._n_ctx)
        self.input_ids[:n] = state.input_ids[:n]
        self.n_tokens, self._seed, self._requires_eval = state.n_tokens, state.seed, True
        self._logits[: len(state.scores)] = state.scores
        self._held = self._input_ids.copy()

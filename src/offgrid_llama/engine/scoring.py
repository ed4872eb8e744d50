"""Score: how probable a continuation of a prompt is, for choices between answers and for evaluations."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias, TypedDict, cast

from offgrid_llama.native.handle import refuse_after_fork
from offgrid_llama.native.kinds import listed, text_of_argument
from offgrid_llama.tasks.prompt_tokens import prompt_tokens
from offgrid_llama.tasks.request_options import RequestOptions

from .closing import Closing
from .completion import Completion
from .in_order import in_order
from .submission import queue

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from offgrid_llama.model.model import Model
    from offgrid_llama.model.vocab import Vocab
    from offgrid_llama.tasks.request_options import LoRAs

    from .prompt_logprobs import PromptLogprobs
    from .submission import Submitter

__all__ = ["PAIRS_PER_SEQUENCE", "Score", "ScoreArguments", "Scoring"]

Text: TypeAlias = "str | bytes | Sequence[int]"
"""A text (str, or bytes of UTF-8), or token ids."""

NamedPair: TypeAlias = tuple[str, Text, Text]
"""How errors call a continuation, its prompt, and the continuation."""

PAIRS_PER_SEQUENCE = 8
"""Continuations that are submitted at once, for each sequence: enough that none waits for its next one."""


class ScoreArguments(TypedDict, total=False):
    """The options of ``Engine.score``, as keyword arguments; see RequestOptions."""

    parse_special: bool
    priority: int
    cache_prompt: bool
    cache_salt: str
    tenant: str
    loras: LoRAs | None


@dataclass(frozen=True, slots=True)
class Score:
    """How probable a continuation is, from the model's own logits.

    Attributes:
        tokens: its token ids, at least one.
        logprobs: the natural logarithm of the probability of each of them, behind all that come before it.
        is_greedy: whether each of them is the most probable one at its place: greedy sampling would have written it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_greedy: bool

    @property
    def logprob(self) -> float:
        """The sum of ``logprobs``: the logarithm of the probability of the whole."""
        return math.fsum(self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """The mean of ``logprobs``, which favours no short continuation."""
        return self.logprob / len(self.logprobs)

    @property
    def n_tokens(self) -> int:
        """How many tokens it has."""
        return len(self.tokens)


class Scored(Completion):
    """A request that ``Submitter.make_scored`` has made. When it has ended, it has a score."""

    @property
    def score(self) -> Score:
        """How probable the continuation is."""
        wanted = cast("PromptLogprobs", self._events.prompt_logprobs)
        first, scores = wanted.scores()
        return Score(
            tuple(wanted.tokens[first:]),
            tuple(logprob for each in scores for logprob in each.logprobs.tolist()),
            all(bool((each.ranks == 1).all()) for each in scores),
        )


class Scoring(Closing):
    """The part of an Engine that scores continuations. A subclass has its submitter, and how many pairs are submitted."""

    model: Model
    _submitter: Submitter
    _n_pairs: int

    def score(self, prompt: Text, continuations: Iterable[Text], **options: Unpack[ScoreArguments]) -> list[Score]:
        """Return how probable each continuation of a prompt is, in their order. The prompt is computed once.

        Nothing is generated. Several are computed in each step, beside the requests of others.

        Args:
            prompt: text (str, or bytes of UTF-8), or token ids. Where it and a continuation are both str, they are tokenized
                together: tokens are scored from where those of the prompt alone end, or differ.
            continuations: each such a text, usually with the space that it begins with, or token ids.
            options: ``parse_special``, ``priority``, ``cache_prompt``, ``cache_salt``, ``tenant``, ``loras``: see
                RequestOptions.

        Raises ValueError for a continuation without tokens, or with nothing before it; and as ``submit`` does.
        """
        pairs = named_pairs(prompt, continuations)
        with closing(self._scored("Engine.score", pairs, options)) as scored:
            return [each.result().score for each in scored]

    async def score_async(
        self, prompt: Text, continuations: Iterable[Text], **options: Unpack[ScoreArguments]
    ) -> list[Score]:
        """Do what ``score`` does, on an event loop. Cancelling the task cancels the requests."""
        pairs = named_pairs(prompt, continuations)
        with closing(self._scored("Engine.score_async", pairs, options)) as scored:
            return [(await each).score for each in scored]

    def score_pairs(self, pairs: Iterable[tuple[Text, Text]], **options: Unpack[ScoreArguments]) -> Iterator[Score]:
        """Yield how probable the continuation of each ``(prompt, continuation)`` is, in their order, as ``score`` does.

        Pairs of one prompt should follow each other, so that it is computed once. They are taken as they are needed.
        """
        named = ((f"pairs[{i}]", prompt, continuation) for i, (prompt, continuation) in enumerate(pairs))
        with closing(self._scored("Engine.score_pairs", named, options)) as scored:
            for each in scored:
                yield each.result().score

    def _scored(
        self, caller: str, pairs: Iterable[NamedPair], options: ScoreArguments
    ) -> Generator[Scored, None, None]:
        checked = score_options(caller, options)

        def submit(pair: NamedPair) -> Scored:
            self._loop.check_open()
            tokens, n_given = split(self.model.vocab, pair, parse_special=checked.parse_special)
            requests = self._submitter.make_scored(tokens, n_given, checked, perf_counter())
            return queue(self._loop, requests, Scored, cancels_if_interrupted=True)

        refuse_after_fork()
        return in_order(submit, pairs, self._n_pairs)


def score_options(caller: str, options: ScoreArguments) -> RequestOptions:
    """Return the options of a request that scores. Raises as RequestOptions does."""
    RequestOptions.read(caller, options, ScoreArguments)
    return RequestOptions(**options, max_tokens=1, temperature=0, lookup=False, draft=False)


def named_pairs(prompt: Text, continuations: Iterable[Text]) -> list[NamedPair]:
    """Return the pairs of a prompt with each of its continuations, and how errors call these."""
    if isinstance(continuations, (str, bytes)):
        raise TypeError("continuations must be texts, or lists of token ids, not one text; put it into a list")
    some = listed("continuations", continuations, "texts, or lists of token ids")
    return [(f"continuations[{i}]", prompt, each) for i, each in enumerate(some)]


def split(vocab: Vocab, pair: NamedPair, *, parse_special: bool) -> tuple[list[int], int]:
    """Return the token ids of a prompt and its continuation, and how many of them come before those that are scored.

    Two texts are tokenized together, as a model has seen them. The tokens that are scored begin where those of the prompt
    alone end, or differ.

    Raises as ``prompt_tokens`` does; ValueError where nothing comes before the continuation, or that has no tokens.
    """
    name, prompt, continuation = pair
    begun = _tokens(vocab, prompt, "prompt", add_special=True, parse_special=parse_special)
    if isinstance(prompt, str) and isinstance(continuation, str):
        whole = _tokens(vocab, prompt + continuation, name, add_special=True, parse_special=parse_special)
        n = [*(one == other for one, other in zip(begun, whole, strict=False)), False].index(False)
        if 0 < n < len(whole):
            return whole, n
    more = _tokens(vocab, continuation, name, add_special=False, parse_special=parse_special)
    if not more:
        raise ValueError(f"{name} gives no tokens")
    if not begun:
        raise ValueError("prompt gives no tokens, so that the first token of a continuation has no probability")
    return [*begun, *more], len(begun)


def _tokens(vocab: Vocab, given: Text, name: str, *, add_special: bool, parse_special: bool) -> list[int]:
    if isinstance(given, (str, bytes)):
        with text_of_argument(name):
            return vocab.tokenize(given, add_special=add_special, parse_special=parse_special)
    ids = listed(name, given, "token ids, or a text")
    return prompt_tokens(vocab, ids, name=name) if ids else []

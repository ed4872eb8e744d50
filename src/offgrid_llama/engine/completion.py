"""Completion: the answers to one submitted prompt, to wait for, to stream, or to cancel, for threads and asyncio."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.native.bound import Bound

from .prompt_logprobs import PromptLogprobs, TokenLogprobs

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Self

    from .planning.request import Request

__all__ = ["Answer", "Completion", "Events", "Piece", "Timings", "TokenLogprobs", "Usage", "wake"]


@dataclass(slots=True)
class Piece:
    """A part of an answer, as it is generated.

    Attributes:
        text: the text, in whole characters. The last piece may be empty.
        tokens: the token ids whose text it completes.
        logprobs: those of its tokens; empty unless asked for.
        index: the index of its answer.
        finish_reason: why the answer ends with this piece; None if it goes on.
        n_computed: in a piece that only tells the progress of the prompt, how many of its tokens are computed.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    index: int
    finish_reason: FinishReason | None = None
    n_computed: int | None = None


@dataclass(slots=True)
class Answer(Bound):
    """One of the ``n`` answers of a completion, as far as it is generated.

    Attributes:
        index: its index. seed: the seed of its sampler; the same seed gives the same answer.
        text: its text so far. tokens: its token ids so far, without the one that ends the text.
        logprobs: TokenLogprobs of each token; empty unless asked for.
        end: the token that the model has ended it with; None where something else has. end_logprobs: its TokenLogprobs, if
            those of tokens are asked for.
        finish_reason: why it has ended; None while it runs.
        stop: the stop string that has ended it; None if none has.
        error: the error that has ended it; None if none has.
    """

    _instead = "keep its text, tokens and logprobs"

    index: int
    seed: int | None
    request: Request = field(repr=False)
    text: str = ""
    finish_reason: FinishReason | None = None
    stop: str | None = None
    end: int | None = None
    end_logprobs: TokenLogprobs | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: BaseException | None = None
    started: float | None = field(default=None, repr=False)
    first_token: float | None = field(default=None, repr=False)
    finished: float | None = field(default=None, repr=False)

    @property
    def tokens(self) -> list[int]:
        """Its token ids so far, without the one that ends the text."""
        return self.request.tokens


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens: of the prompt, of those computed before (the prefix cache), and of all answers together.

    Of the tokens of a ``prediction``, those that came in the answers were accepted, and the others rejected. Both are 0
    where the request has no prompt lookup: with logits processors, a reasoning budget, or a chain of samplers that reports
    logprobs.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of an answer; each is None until it is known.

    Attributes:
        queue: in the queue. prefill: from there to the first token.
        first_token: from ``submit`` to the first token (TTFT). decode: from the first token to the end.
    """

    queue: float | None
    prefill: float | None
    first_token: float | None
    decode: float | None


_Waiting: TypeAlias = "tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | threading.Event"


class Events:
    """The pieces that the engine's thread hands to a Completion, and the readers that wait for them.

    The engine appends a piece and then wakes; a reader registers and then looks. So neither misses the other. A reader that
    waits for the end is not woken before: on few cores each wake-up costs the step under way.

    Attributes:
        answers: the answers. pieces: their pieces so far, in the order of their generation.
        prompt_logprobs: those of the prompt's tokens; None where they are not wanted.
        n_prompt: tokens of the prompt. submitted: when it was submitted, by ``time.perf_counter``.
        n_unfinished: how many answers have not ended.
        streaming: whether a reader iterates over the pieces.
        waiting, waiting_for_end: readers that wait for the next piece, and for the end.
    """

    __slots__ = (
        "answers",
        "n_prompt",
        "n_unfinished",
        "pieces",
        "prompt_logprobs",
        "streaming",
        "submitted",
        "waiting",
        "waiting_for_end",
    )

    def __init__(self, n_prompt: int, submitted: float) -> None:
        self.answers: list[Answer] = []
        self.n_prompt = n_prompt
        self.submitted = submitted
        self.pieces: list[Piece] = []
        self.prompt_logprobs: PromptLogprobs | None = None
        self.n_unfinished = 0
        self.streaming = False
        self.waiting: list[_Waiting] = []
        self.waiting_for_end: list[_Waiting] = []


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def wake(events: Iterable[Events]) -> None:
    """Wake the readers of these: each thread by itself, all readers on one event loop in one call."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for each in events:
        waiting, each.waiting = each.waiting, []
        if not each.n_unfinished:
            waiting += each.waiting_for_end
            each.waiting_for_end = []
        for reader in waiting:
            if isinstance(reader, threading.Event):
                reader.set()
            else:
                loops.setdefault(reader[0], []).append(reader[1])
    for loop, futures in loops.items():
        with suppress(RuntimeError):  # the loop is closed, and its readers are gone
            loop.call_soon_threadsafe(_wake, futures)


class Completion(Bound):
    """The answer to a prompt, or its ``n`` answers.

    Iterate over it for pieces as they are generated (``for``, or ``async for``); call ``result()`` or ``await`` it for the
    whole. Each may be done more than once. Answers that still run are cancelled when the last reference to it goes, or its
    ``with`` block ends. Ctrl-C, or the end of a task, in a wait for one that ``submit`` returned leaves it running: its
    caller has it, and can go on waiting or cancel it. In all other waits of an Engine or a Chat it cancels the request.

    Attributes:
        answers: the answers so far. ``text``, ``tokens``, ``logprobs``, ``finish_reason``, ``stop`` and ``timings`` belong
            to the first one.
    """

    _instead = "keep its text, tokens and usage"

    def __init__(self, events: Events, cancel: Callable[[], object], *, cancels_if_interrupted: bool = False) -> None:
        self._events = events
        self._cancels_if_interrupted = cancels_if_interrupted
        self._cancel = weakref.finalize(self, cancel)
        self._cancel.atexit = False

    def __repr__(self) -> str:
        reasons = {str(answer.finish_reason and answer.finish_reason.value) for answer in self.answers}
        return f"<Completion {', '.join(sorted(reasons))}: {self.text!r}>"

    @property
    def answers(self) -> list[Answer]:
        """The answers so far."""
        return self._events.answers

    @property
    def text(self) -> str:
        """The first answer's text so far."""
        return self.answers[0].text

    @property
    def tokens(self) -> list[int]:
        """The first answer's token ids so far."""
        return self.answers[0].tokens

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """TokenLogprobs of each token of the first answer; empty unless asked for."""
        return self.answers[0].logprobs

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None]:
        """TokenLogprobs of each token of the prompt, None for the first, as far as they are known; empty unless asked for.

        They are complete with the first token of the first answer. Each call makes the list anew.
        """
        wanted = self._events.prompt_logprobs
        return [] if wanted is None else wanted.told()

    @property
    def prompt_ranks(self) -> list[int | None]:
        """The rank of each token of the prompt, as far as ``prompt_logprobs`` are known; empty unless these are asked for.

        1 is the most probable token at its place. The first token has None.
        """
        wanted = self._events.prompt_logprobs
        return [] if wanted is None else wanted.ranks()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first answer has ended; None while it runs."""
        return self.answers[0].finish_reason

    @property
    def stop(self) -> str | None:
        """The stop string that has ended the first answer; None if none has."""
        return self.answers[0].stop

    @property
    def done(self) -> bool:
        """Whether all answers have ended."""
        return not self._events.n_unfinished

    @property
    def usage(self) -> Usage:
        """Counts of tokens so far."""
        completion = sum(len(answer.tokens) for answer in self.answers)
        guessers = [answer.request.guesser for answer in self.answers]
        predicted = [guesser.predicted for guesser in guessers if guesser is not None and guesser.predicted is not None]
        accepted = sum(each.n_accepted for each in predicted)
        rejected = sum(len(each.tokens) for each in predicted) - accepted
        return Usage(self._events.n_prompt, self.answers[0].request.n_cached, completion, accepted, rejected)

    @property
    def timings(self) -> Timings:
        """The first answer's times."""
        answer, submitted = self.answers[0], self._events.submitted
        return Timings(
            queue=_between(submitted, answer.started), prefill=_between(answer.started, answer.first_token),
            first_token=_between(submitted, answer.first_token), decode=_between(answer.first_token, answer.finished),
        )  # fmt: skip

    def cancel(self) -> None:
        """Stop the answers that still run; they end with ``FinishReason.CANCELLED``. From any thread."""
        if self._cancel.alive and not self.done:
            self._cancel()

    close = cancel

    @property
    def cancelled(self) -> bool:
        """Whether it was told to stop while it ran; it has ended when ``done`` is True."""
        return not self._cancel.alive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Piece]:
        at = 0
        pieces = self._events.pieces
        self._events.streaming = True
        while True:
            while at < len(pieces):
                yield pieces[at]
                at += 1
            if self.done and at == len(pieces):
                self._raise()
                return
            with self._waiting():
                event = threading.Event()
                self._events.waiting.append(event)
                if at == len(pieces) and not self.done:
                    event.wait()

    def result(self, timeout: float | None = None) -> Self:
        """Wait for the end, and return this completion.

        Raises TimeoutError after ``timeout`` seconds, while the completion goes on; and the error of an answer that has
        failed.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"the completion has not ended after {timeout} s; it goes on")
        self._raise()
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, which may be a failure, for ``timeout`` seconds at most; return whether it has come."""
        with self._waiting():
            event = threading.Event()
            self._events.waiting_for_end.append(event)
            ended = self.done or event.wait(timeout) or self.done
        if not ended:
            self._events.waiting_for_end.remove(event)
        return ended

    async def __aiter__(self) -> AsyncIterator[Piece]:
        at = 0
        pieces = self._events.pieces
        self._events.streaming = True
        while True:
            while at < len(pieces):
                yield pieces[at]
                at += 1
            if self.done and at == len(pieces):
                self._raise()
                return
            with self._waiting():
                future = _future(self._events.waiting)
                if at == len(pieces) and not self.done:
                    await future

    def __await__(self) -> Generator[Any, None, Self]:
        return self._result_async().__await__()

    async def _result_async(self) -> Self:
        await self.wait_async()
        self._raise()
        return self

    async def wait_async(self) -> None:
        """Wait for the end, which may be a failure, on an event loop."""
        with self._waiting():
            future = _future(self._events.waiting_for_end)
            if not self.done:
                await future

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Wait in this block. An interruption cancels the request, but for a caller that has it from ``submit``.

        The traceback of a KeyboardInterrupt may live on, as in a notebook, and keeps a reference to this object.
        """
        try:
            yield
        except BaseException:
            if self._cancels_if_interrupted:
                self.cancel()
            raise

    def _raise(self) -> None:
        for answer in self.answers:
            if answer.error is not None:
                raise answer.error


def _future(waiting: list[_Waiting]) -> asyncio.Future[None]:
    """Return a future, registered as a reader that waits."""
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    waiting.append((loop, future))
    return future


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin

"""Completion: what ``submit`` gives out, to wait for, to read as it comes, or to cancel, for threads and asyncio."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from .request import FinishReason, Request

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Self

    from ..text import TextStream

__all__ = ["Answer", "Completion", "Events", "Piece", "Timings", "TokenLogprobs", "Usage", "wake"]

TokenLogprobs = tuple[float, list[tuple[int, float]]]
"""A token's own logprob, and the most probable tokens with theirs."""


@dataclass(slots=True)
class Piece:
    """Some text of an answer, as it comes.

    Attributes:
        text: the text, of whole characters. The last piece may have none.
        tokens: the token ids whose text it completes.
        logprobs: for each of them; empty unless asked for.
        index: which of the answers it is of.
        finish_reason: why the answer ends with this piece; None before.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    index: int
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Answer:
    """One of the ``n`` answers of a completion, as far as it is.

    Attributes:
        index: which one. text: what there is of it. tokens: its token ids, without one that ends the text.
        finish_reason: None while it runs. stop: the stop string that was hit, if any.
        logprobs: for each token its own logprob and the most probable tokens with theirs; empty unless asked for.
        seed: of its sampler; the same seed gives the same answer.
        error: why it failed.
    """

    index: int
    seed: int | None
    request: Request = field(repr=False)
    stream: TextStream = field(repr=False)
    events: Events = field(repr=False)
    shown: Mapping[int, bytes] | None = field(default=None, repr=False)  # control tokens that give text
    text: str = ""
    finish_reason: FinishReason | None = None
    stop: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: BaseException | None = None
    started: float | None = field(default=None, repr=False)
    first_token: float | None = field(default=None, repr=False)
    finished: float | None = field(default=None, repr=False)
    n_told: int = field(default=0, repr=False)  # tokens that a piece has had
    told: float = field(default=0.0, repr=False)  # when the last piece was given out
    held: str = field(default="", repr=False)  # text that comes with the next one

    @property
    def tokens(self) -> list[int]:
        """Its token ids, without one that ends the text."""
        return self.request.tokens


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a completion: of the prompt, of those the ones that were computed before, and generated ones in all."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of an answer: in the queue, for the prompt, from submit to the first token, and from there to the end.

    Each is None as long as it is not known.
    """

    queue: float | None
    prefill: float | None
    first_token: float | None
    decode: float | None


_Waiting: TypeAlias = "tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | threading.Event"


class Events:
    """What the engine's thread has for the holder of a Completion, and who waits for it.

    The engine appends and then wakes; whoever waits says so and then looks. So neither misses the other. Who waits for the
    end is not woken before: on few cores each time would cost the step that is under way.
    """

    __slots__ = (
        "answers",
        "n_prompt",
        "n_unfinished",
        "pieces",
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
        self.n_unfinished = 0
        self.streaming = False  # whether somebody reads along
        self.waiting: list[_Waiting] = []
        self.waiting_for_end: list[_Waiting] = []


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def wake(events: Iterable[Events]) -> None:
    """Wake all who wait for any of these: each thread by itself, those on an event loop in one call."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for each in events:
        waiting, each.waiting = each.waiting, []
        if not each.n_unfinished:
            waiting += each.waiting_for_end
            each.waiting_for_end = []
        for who in waiting:
            if isinstance(who, threading.Event):
                who.set()
            else:
                loops.setdefault(who[0], []).append(who[1])
    for loop, futures in loops.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_wake, futures)


class Completion:
    """What a prompt is completed to: one answer, or ``n``.

    Iterate over it for pieces as they come (``for``, or ``async for``), call ``result()`` or ``await`` it for the whole;
    each may be done more than once. When the last reference to it goes, or its ``with`` block ends, what is still running is
    cancelled.

    Attributes:
        answers: the answers, as far as they are. ``text``, ``tokens``, ``logprobs``, ``finish_reason``, ``stop`` and
            ``timings`` are of the first one.
    """

    def __init__(self, events: Events, cancel: Callable[[list[Request]], None]) -> None:
        self._events = events
        requests = [answer.request for answer in events.answers]
        self._cancel = weakref.finalize(self, cancel, requests)
        self._cancel.atexit = False

    def __repr__(self) -> str:
        reasons = {str(answer.finish_reason and answer.finish_reason.value) for answer in self.answers}
        return f"<Completion {', '.join(sorted(reasons))}: {self.text!r}>"

    @property
    def answers(self) -> list[Answer]:
        """The answers, as far as they are."""
        return self._events.answers

    @property
    def text(self) -> str:
        """What there is of the first answer's text."""
        return self.answers[0].text

    @property
    def tokens(self) -> list[int]:
        """The first answer's token ids."""
        return self.answers[0].tokens

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """For each token of the first answer its logprob and the most probable ones; empty unless asked for."""
        return self.answers[0].logprobs

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first answer has ended; None while it runs."""
        return self.answers[0].finish_reason

    @property
    def stop(self) -> str | None:
        """The stop string that has ended the first answer, if one has."""
        return self.answers[0].stop

    @property
    def done(self) -> bool:
        """Whether all answers have ended."""
        return not self._events.n_unfinished

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        completion = sum(len(answer.tokens) for answer in self.answers)
        return Usage(self._events.n_prompt, self.answers[0].request.n_cached, completion)

    @property
    def timings(self) -> Timings:
        """How long what has taken, for the first answer."""
        answer, submitted = self.answers[0], self._events.submitted
        return Timings(
            queue=_between(submitted, answer.started), prefill=_between(answer.started, answer.first_token),
            first_token=_between(submitted, answer.first_token), decode=_between(answer.first_token, answer.finished),
        )  # fmt: skip

    def cancel(self) -> None:
        """Stop what is still running, at once; it ends with ``FinishReason.CANCELLED``. From any thread."""
        if self._cancel.alive and not self.done:
            self._cancel()

    close = cancel

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
            event = threading.Event()
            self._events.waiting.append(event)
            if at == len(pieces) and not self.done:
                event.wait()

    def result(self, timeout: float | None = None) -> Self:
        """Wait for the end, and return this completion.

        Raises TimeoutError after ``timeout`` seconds, and what an answer has failed with.
        """
        event = threading.Event()
        self._events.waiting_for_end.append(event)
        if not self.done and not event.wait(timeout) and not self.done:
            self._events.waiting_for_end.remove(event)
            raise TimeoutError(f"the completion is not there after {timeout} s; it goes on")
        self._raise()
        return self

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
            future = _future(self._events.waiting)
            if at == len(pieces) and not self.done:
                await future

    def __await__(self) -> Generator[Any, None, Self]:
        return self._result_async().__await__()

    async def _result_async(self) -> Self:
        future = _future(self._events.waiting_for_end)
        if not self.done:
            await future
        self._raise()
        return self

    def _raise(self) -> None:
        for answer in self.answers:
            if answer.error is not None:
                raise answer.error


def _future(waiting: list[_Waiting]) -> asyncio.Future[None]:
    """Return a future that is in a list of those who wait."""
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    waiting.append((loop, future))
    return future


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin

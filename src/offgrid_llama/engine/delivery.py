"""Delivery: turns the tokens of each step into text, and hands it to the callers as pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from offgrid_llama.finish_reason import FinishReason

from .completion import Answer, Events, Piece, wake
from .request import EngineRequest

if TYPE_CHECKING:
    from offgrid_llama.sampling.step import Sampled
    from offgrid_llama.text.text_stream import TextStream

    from .planning.plan import Plan

__all__ = ["Delivery"]


class Delivery:
    """Gives out text in the engine's thread, and wakes its readers: once for each step, not for each token.

    Args:
        finish: ends a request in the scheduler.
        stream_interval: seconds within which a reader gets no further piece, but for the first and the last.
        on_end: called with each request that has ended.

    Attributes:
        stream_interval: as given.
        n_ended: how many requests have ended.
        prompt_tokens, prompt_tokens_cached, generated_tokens, guessed_tokens, guessed_tokens_right, finished: as EngineStats
            has them.
    """

    def __init__(
        self,
        finish: Callable[[EngineRequest, FinishReason], None],
        stream_interval: float = 0.0,
        on_end: Callable[[EngineRequest], object] | None = None,
    ) -> None:
        self._on_end = on_end
        self.stream_interval = stream_interval
        self.finished: Counter[str] = Counter()
        self.n_ended = 0
        self.prompt_tokens = self.prompt_tokens_cached = self.generated_tokens = 0
        self.guessed_tokens = self.guessed_tokens_right = 0
        self._finish = finish
        self._woken: dict[Events, None] = {}

    def begin(self, requests: Iterable[EngineRequest]) -> None:
        """Take that requests have got a sequence."""
        now = perf_counter()
        for request in requests:
            request.answer.started = now
            self.prompt_tokens += len(request.prompt)
            self.prompt_tokens_cached += request.n_cached
            if request.reports_progress:
                self._tell_progress(request, request.n_cached)

    def progress(self, plan: Plan[EngineRequest]) -> None:
        """Tell how much of their prompts is computed, after a step and before its tokens are given out."""
        for rows in plan.rows:
            if rows.request.reports_progress and not rows.request.tokens:
                self._tell_progress(rows.request, rows.pos + len(rows.tokens))

    def _tell_progress(self, request: EngineRequest, n_computed: int) -> None:
        request.events.pieces.append(Piece("", (), (), request.answer.index, n_computed=n_computed))
        self._woken[request.events] = None

    def give(self, new: Iterable[tuple[EngineRequest, Sampled, int]]) -> None:
        """Turn new tokens into text, and give it out; ``new`` is what ``Scheduler.apply`` returns."""
        now = perf_counter()
        for request, sampled, n in new:
            if len(sampled.tokens) > n:
                _take_end(request.answer, sampled, n)
            if not n:
                self.end(request, "", sampled.error)
                continue
            answer, stream = request.answer, request.stream
            answer.first_token = answer.first_token or now
            pieces = sampled.pieces if request.shown is None else _with_control_tokens(sampled, request.shown)
            text = stream.push(pieces[0])
            n_read = 1
            if n > 1:
                more, n_read = _push_rest(stream, pieces[:n])
                text += more
            if stream.stopped is not None or sampled.ended:
                self._stop(request, n - n_read)
            self.generated_tokens += n_read
            if sampled.logprobs:
                answer.logprobs += sampled.logprobs[:n_read]
            error = self._end_early(request, text, now)
            if request.finish_reason is not None:
                self.end(request, text, error)
            elif text and request.n_delivered and now - request.delivered < self.stream_interval:
                request.held += text
            elif text:
                self._tell(request, text)

    def _end_early(self, request: EngineRequest, text: str, now: float) -> Exception | None:
        """End a request where its ``until`` says so; return what that has raised."""
        answer = request.answer
        if request.until is None or not text or request.finish_reason is not None or answer.first_token is None:
            return None
        try:
            if request.until(answer.text + request.held + text, now - answer.first_token):
                self._finish(request, FinishReason.LENGTH)
        except Exception as error:
            self._finish(request, FinishReason.ERROR)
            return error
        return None

    def _stop(self, request: EngineRequest, n_unread: int) -> None:
        """End a request whose text is complete, without the tokens behind a stop string."""
        if n_unread:
            del request.tokens[-n_unread:]
        if request.stream.stopped is not None:
            request.answer.end = request.answer.end_logprobs = None
        self._finish(request, FinishReason.STOP)
        request.finish_reason = FinishReason.STOP  # also where its last token reached max_tokens

    def end(self, request: EngineRequest, text: str = "", error: BaseException | None = None) -> None:
        """Give out the last piece of a request that has a finish reason."""
        answer, stream, events = request.answer, request.stream, request.events
        text += stream.finish()
        if stream.stopped is not None and request.finish_reason is FinishReason.LENGTH:
            request.finish_reason = FinishReason.STOP
        reason = request.finish_reason
        answer.stop, answer.error, answer.finish_reason = stream.stopped, error, reason
        answer.finished = perf_counter()
        self.n_ended += 1
        if reason is not None:
            self.finished[reason.value] += 1
        self.guessed_tokens += request.n_guessed
        self.guessed_tokens_right += request.n_right
        request.sampler.close()
        if self._on_end is not None:
            self._on_end(request)
        self._tell(request, text)
        events.n_unfinished -= 1
        self._woken[events] = None

    def release(self, plan: Plan[EngineRequest]) -> None:
        """Give out text that is held for the next piece, before a step that may take long."""
        for rows in plan.rows:
            if rows.request.held:
                self._tell(rows.request, "")
        self.flush()

    def _tell(self, request: EngineRequest, text: str) -> None:
        begin, request.n_delivered = request.n_delivered, len(request.tokens)
        text, request.held = request.held + text, ""
        request.delivered = perf_counter()
        answer, events = request.answer, request.events
        answer.text += text
        # Tuples of numbers cost the garbage collector nothing.
        tokens = tuple(request.tokens[begin:])
        logprobs = tuple(answer.logprobs[begin:]) if answer.logprobs else ()
        events.pieces.append(Piece(text, tokens, logprobs, answer.index, answer.finish_reason))
        if events.waiting:
            self._woken[events] = None

    def flush(self) -> None:
        """Wake the readers of all that was given out since the last call."""
        if self._woken:
            wake(self._woken)
            self._woken = {}


def _take_end(answer: Answer, sampled: Sampled, n: int) -> None:
    """Take the token behind the text, which has ended it."""
    answer.end = sampled.tokens[n]
    if len(sampled.logprobs) > n:
        answer.end_logprobs = sampled.logprobs[n]


def _with_control_tokens(sampled: Sampled, shown: Mapping[int, bytes]) -> list[bytes]:
    """Return the bytes of the tokens, with those of control tokens, which have none by themselves."""
    return [piece or shown.get(token, b"") for token, piece in zip(sampled.tokens, sampled.pieces, strict=True)]


def _push_rest(stream: TextStream, pieces: Sequence[bytes]) -> tuple[str, int]:
    """Push the pieces behind the first one, up to a stop string; return their text, and the number of all pieces pushed."""
    text, n = "", 1
    while n < len(pieces) and stream.stopped is None:
        text += stream.push(pieces[n])
        n += 1
    return text, n

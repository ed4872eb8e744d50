"""Loop: what arrives is taken, a step is made, its tokens are delivered; with a thread, or turn by turn."""

from __future__ import annotations

import threading
import time

import pytest

import offgrid_llama as og
from helpers.loops import Parrot, loop_over, request_of
from offgrid_llama.engine import FinishReason


def test_what_can_wait_is_done_when_nothing_else_is() -> None:
    """The engine's thread sees to it once, after a while without a request, and not before one that is there."""
    first, second = request_of([5] * 4, 5), request_of([6] * 4, 5)
    idle, done = threading.Event(), []

    def when_idle() -> None:
        done.append(first.finish_reason)
        idle.set()

    loop = loop_over(Parrot(duration=0.02), when_idle=when_idle)
    loop.idle_after_seconds = 0.01
    loop.submit([first])
    loop.start()
    assert idle.wait(60)
    assert done == [FinishReason.LENGTH]
    loop.submit([second])
    while not second.events.pieces or second.events.n_unfinished:
        time.sleep(0.01)
    time.sleep(0.05)
    loop.close()
    assert done == [FinishReason.LENGTH]


def test_turn_by_turn() -> None:
    """A turn takes what has arrived, makes one step and delivers it; without anything to do it says so."""
    loop = loop_over(Parrot())
    assert (loop.has_work, loop.turn()) == (False, False)
    one, other = request_of([5] * 4, 3), request_of([6] * 4, 2)
    loop.submit([one, other])
    assert loop.has_work
    assert loop.turn()
    assert (one.answer.text, other.answer.text) == ("x", "x")
    assert [piece.text for piece in one.events.pieces] == ["x"]
    assert loop.turn()
    assert (one.finish_reason, other.finish_reason) == (None, FinishReason.LENGTH)
    loop.cancel([one])
    assert not loop.turn()
    assert (one.finish_reason, one.answer.text) == (FinishReason.CANCELLED, "xx")
    stats = loop.stats()
    assert (stats.generated_tokens, stats.n_steps, stats.finished) == (4, 2, {"length": 1, "cancelled": 1})
    loop.close()


@pytest.mark.parametrize("drain", [False, True])
def test_closing_without_a_thread(drain: bool) -> None:
    """A loop that was never started closes in the caller's thread: at once, or after the last step."""
    runner = Parrot()
    loop = loop_over(runner)
    request = request_of([5] * 4, 3)
    loop.submit([request])
    loop.close(drain)
    loop.close()
    assert request.finish_reason is (FinishReason.LENGTH if drain else FinishReason.CANCELLED)
    assert request.answer.finish_reason is request.finish_reason
    assert runner.closed
    with pytest.raises(og.ClosedError, match="Loop is closed"):
        loop.submit([request_of([5], 1)])

"""Requests that are cancelled, wait, or cannot be."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

import offgrid_llama as og
from helpers.engines import ENDLESS, GREEDY, UNENDING, alone, driven, idle, loop_of, runner_of, settle, turns
from helpers.serving import wait_until
from offgrid_llama.engine import FinishReason


@pytest.mark.parametrize("steps_in_a_call", [1, 8])
def test_cancelling_at_every_step(letters: og.Model, steps_in_a_call: int) -> None:
    """After any number of steps: a request ends, its slot is free by the next step, and its neighbour goes on."""
    expected = alone(letters, [9] * 100, 12, og.SamplingParams(temperature=0))[0]
    engine = driven(letters, steps_in_a_call=steps_in_a_call)
    for step in range(30):
        other = engine.submit([9] * 100, max_tokens=12, **GREEDY)
        doomed = engine.submit([8 + step] * 130, max_tokens=8, sampling=ENDLESS)
        begun = turns(engine, step)
        doomed.cancel()
        turns(engine, 1)
        assert doomed.done
        assert doomed.finish_reason is FinishReason.LENGTH if begun < step else FinishReason.CANCELLED
        assert doomed.answers[0].request not in loop_of(engine).scheduler.unfinished()
        turns(engine)
        assert other.tokens == expected
        idle(engine)
    engine.close()


def test_a_long_prompt_is_cancelled_within_its_step(smollm2: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """cancel() does not wait for the rest of a prompt: the decode stops, and what others have stays."""
    with og.Engine(smollm2, n_seq_max=2, n_ctx=4096, n_batch=2048, n_threads=2) as engine:
        engine.generate([6] * 40, max_tokens=1, **GREEDY)
        steps, context = engine.stats().n_steps, runner_of(engine).context
        decode, begun = context.decode_with, threading.Event()

        def held(batch: og.Batch, function: Any) -> None:
            """Let the decode, once it is under way, wait for the cancel()."""

            def call(*arguments: Any) -> int:
                begun.set()
                wait_until(lambda: context._cancel.requested != 0)
                code: int = function(*arguments)
                return code

            decode(batch, call)

        with monkeypatch.context() as patch:
            patch.setattr(context, "decode_with", held)
            long = engine.submit([5] * 1200, max_tokens=2)
            assert begun.wait(30)
            long.cancel()
            assert long.result().finish_reason is FinishReason.CANCELLED
        settle(engine)
        stats = engine.stats()
        assert stats.n_failed_steps == 1
        assert stats.n_steps == steps + 1  # that of settle(): the long one did not end
        assert engine.generate([6] * 40, max_tokens=1, **GREEDY).usage.cached_tokens == 39


def test_dropping_the_iterator_cancels(engine: og.Engine) -> None:
    """A closed iterator frees the slot; so do a Completion without references, and the end of a with block."""
    for piece in engine.stream("abc", **UNENDING):
        assert piece.text
        break
    engine.submit("abc", **UNENDING)
    gc.collect()
    with engine.submit("abc", **UNENDING) as completion:
        pass
    assert completion.result().finish_reason is FinishReason.CANCELLED
    settle(engine)
    assert engine.stats().finished["cancelled"] == 3
    idle(engine)


def test_a_task_that_is_cancelled(engine: og.Engine) -> None:
    """Cancelling the task cancels the request."""

    async def main() -> None:
        task = asyncio.ensure_future(engine.generate_async("abc", **UNENDING))
        async for _ in engine.stream_async("abd", max_tokens=3, sampling=ENDLESS):
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    settle(engine)
    assert engine.stats().finished["cancelled"] == 1


def test_waiting_no_longer(letters: og.Model) -> None:
    """result() with a timeout gives up the waiting, and not the request."""
    engine = driven(letters)
    completion = engine.submit("abc", max_tokens=3, sampling=ENDLESS)
    with pytest.raises(TimeoutError):
        completion.result(timeout=0.01)
    turns(engine)
    assert len(completion.result(timeout=0).tokens) == 3
    engine.close()


def test_what_finds_a_free_sequence_does_not_wait(letters: og.Model) -> None:
    """With four sequences and a queue of one, five requests that come together are taken; as one ends, another is taken."""
    engine = driven(letters, 4, max_queue=1)
    first, *_ = [engine.submit("abc", max_tokens=9) for _ in range(5)]
    with pytest.raises(og.QueueFullError):
        engine.submit("abc")
    first.cancel()
    turns(engine, 1)
    engine.submit("abc")
    with pytest.raises(og.QueueFullError):
        engine.submit("abc")
    engine.close()


def test_priorities_and_a_full_queue(letters: og.Model) -> None:
    """The larger priority begins first; one more than there are slots and max_queue is refused, and nothing is queued."""
    engine = driven(letters, 1, max_queue=2)
    low, high = engine.submit("abc", max_tokens=1), engine.submit("abd", max_tokens=1, priority=1)
    with pytest.raises(og.QueueFullError) as full:
        engine.submit("abe", n=2)
    assert full.value.n_waiting == engine.stats().n_waiting == 2
    turns(engine, 1)
    assert (low.done, high.done) == (False, True)
    low.cancel()
    turns(engine, 1)
    assert engine.stats().n_waiting == 0
    engine.submit("abe", n=3, max_tokens=1)
    engine.close()

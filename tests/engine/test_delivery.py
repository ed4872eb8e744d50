"""How pieces come to their readers, and how many steps one call makes."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest

import offgrid_llama as og
from helpers.engines import ENDLESS, alone, driven, make, runner_of, turns
from offgrid_llama.engine.planning.plan import Plan
from offgrid_llama.engine.request import EngineRequest


def test_pieces_that_come_together(letters: og.Model) -> None:
    """Tokens computed within ``stream_interval`` come as one piece, but for the first token; the text is the same."""
    expected = alone(letters, [9], 90, ENDLESS)[0]
    n_pieces = {}
    for interval in (0.0, 1.0):
        with make(letters, stream_interval=interval) as engine:
            pieces = list(engine.stream([9], max_tokens=90, sampling=ENDLESS))
            assert [token for piece in pieces for token in piece.tokens] == expected
            assert len(pieces[0].tokens) == 1
            n_pieces[interval] = len(pieces)
    assert n_pieces[1.0] < n_pieces[0.0] / 2
    for wrong in (-1, 2, math.nan):
        with pytest.raises(ValueError, match="stream_interval"):
            make(letters, stream_interval=wrong)


def test_a_piece_that_is_held(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens wait for the next piece, no longer than the interval, nor for a step with prompts, nor beyond the end."""
    clock = [1000.0]
    monkeypatch.setattr("offgrid_llama.engine.delivery.perf_counter", lambda: clock[0])
    engine = driven(letters, steps_in_a_call=1, stream_interval=1.0)
    long = engine.submit([9] * 20, max_tokens=50, sampling=ENDLESS, lookup=False)
    turns(engine, 6)
    assert (len(long.text), len(long.tokens)) == (1, 6)
    other = engine.submit([8] * 20, max_tokens=2, sampling=ENDLESS)
    turns(engine, 1)
    assert (len(long.text), len(long.tokens)) == (6, 7)
    clock[0] += 2
    turns(engine, 1)
    assert (len(long.text), len(long.tokens)) == (8, 8)
    assert other.done
    assert len(other.text) == 2
    turns(engine, 2)
    long.cancel()
    turns(engine)
    assert len(long.text) == len(long.tokens) == 10
    engine.close()


def test_one_wakeup_for_a_step_and_a_loop(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four readers on one event loop are woken by one call from the engine's thread, not by four."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        calls = 0
        call_soon = loop.call_soon_threadsafe

        def count(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            return call_soon(*arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        engine = driven(letters)

        async def read() -> None:
            async for _ in engine.stream_async([9], max_tokens=10, sampling=ENDLESS):
                pass

        tasks = [asyncio.ensure_future(read()) for _ in range(4)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            turns(engine, 1)
        steps = engine.stats().n_steps
        engine.close()
        assert 0 < calls <= steps
        return calls

    assert asyncio.run(main()) >= 5


def test_steps_that_nobody_reads_along(letters: og.Model) -> None:
    """Without a reader, a call makes several steps; from the moment when one iterates, a single step."""
    engine = driven(letters)
    first = engine.submit("abc", max_tokens=100, sampling=ENDLESS, lookup=False)
    turns(engine, 2)
    before = len(first.tokens)
    turns(engine, 5)
    assert before + 5 < len(first.tokens) <= before + 40
    before = len(first.tokens)
    reader = iter(first)
    next(reader)
    turns(engine, 5)
    assert len(first.tokens) == before + 5
    second = engine.submit("abd", max_tokens=4, sampling=ENDLESS)
    turns(engine)
    assert first.tokens == alone(letters, letters.vocab.tokenize("abc"), 100, ENDLESS)[0]
    assert second.tokens == alone(letters, letters.vocab.tokenize("abd"), 4, ENDLESS)[0]
    engine.close()


def test_a_busy_python_thread(letters: og.Model) -> None:
    """Where other threads keep the GIL, some steps are made in one call, and the text is the same."""
    stop = False

    def busy() -> None:
        while not stop:
            sum(range(1000))

    threads = [threading.Thread(target=busy) for _ in range(2)]
    with make(letters) as engine:
        calls = 0
        runner = runner_of(engine)
        runner.contended_call_seconds = 60.0  # a busy machine makes steps as long as others
        run = runner.run

        def count(plan: Plan[EngineRequest], n_steps: int = 1, seconds: float = 0) -> Any:
            nonlocal calls
            calls += 1
            return run(plan, n_steps, seconds)

        runner.run = count  # type: ignore[method-assign]
        for thread in threads:
            thread.start()
        try:
            completions = [engine.submit([9 + i], max_tokens=200, sampling=ENDLESS) for i in range(3)]
            for i, completion in enumerate(completions):
                assert completion.result().tokens == alone(letters, [9 + i], 200, ENDLESS)[0]
        finally:
            stop = True
            for thread in threads:
                thread.join()
        assert calls < engine.stats().n_steps / 4

"""Engines that are closed, dropped, or still at work when the process ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.children import RunChild
from helpers.engines import ENDLESS, UNENDING, make
from helpers.handles import n_children
from offgrid_llama.engine import FinishReason


def test_close(letters: og.Model) -> None:
    """Requests that run or wait end as cancelled, and after that everything is refused; a second close does nothing."""
    engine = make(letters, 1)
    completions = [engine.submit("abc", **UNENDING) for _ in range(5)]
    engine.close()
    engine.close()
    assert {completion.result().finish_reason for completion in completions} == {FinishReason.CANCELLED}
    with pytest.raises(og.ClosedError, match="Engine of"):
        engine.submit("abc")
    assert engine.closed
    assert not engine.model.closed


def test_close_can_wait(letters: og.Model) -> None:
    """With drain, all that was submitted before goes on to its end."""
    engine = make(letters, 1)
    completions = [engine.submit("abc", max_tokens=20, sampling=ENDLESS) for _ in range(5)]
    engine.close(drain=True)
    assert [len(completion.tokens) for completion in completions] == [20] * 5


def test_ctrl_c_while_it_drains(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a close that waits for requests cancels them, and the engine is closed."""
    engine = make(letters, 1)
    completions = [engine.submit("abc", **UNENDING) for _ in range(5)]
    join = threading.Thread.join
    interrupted: list[threading.Thread] = []

    def interrupt(thread: threading.Thread, timeout: float | None = None) -> None:
        if not interrupted:
            interrupted.append(thread)
            raise KeyboardInterrupt
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.close(drain=True)
    assert {completion.finish_reason for completion in completions} == {FinishReason.CANCELLED}
    assert engine.closed
    engine.close()


def test_an_engine_that_is_dropped(letters: og.Model) -> None:
    """It warns, and frees its context."""
    children = n_children(letters)
    engine = make(letters)
    engine.generate("abc", max_tokens=1)
    held = [engine]
    del engine
    with pytest.warns(ResourceWarning, match="Engine of"):
        held.clear()
    assert n_children(letters) == children


def test_its_own_model(smollm2_path: Path) -> None:
    """A model that the engine has loaded by its path is closed with it."""
    with og.Engine(smollm2_path, n_seq_max=1, n_ctx=256) as engine:
        assert engine.generate("The capital of France is", max_tokens=1, temperature=0).text == " Paris"
    assert engine.model.closed


def test_a_script_that_ends_without_closing(run_child: RunChild, smollm2_path: Path) -> None:
    """The process ends, with an engine at work and a reader that waits in another thread."""
    source = """
        import sys, threading, offgrid_llama as og
        engine = og.Engine(sys.argv[1], n_seq_max=2, n_ctx=2048)
        completion = engine.submit("Once", max_tokens=1000)
        threading.Thread(target=completion.result, daemon=True).start()
        next(iter(completion))
        print("end")
    """
    done = run_child(source, smollm2_path)
    assert (done.returncode, done.stdout.strip()) == (0, "end")

"""Stopping a decode in the middle: Ctrl-C, cancel() and close().

The issue names a figure, half a second for Ctrl-C, and so this one file measures a time; the median of three tries.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers import twin
from helpers.twin import EXACT, TOKENS
from offgrid_llama.native.handle import Handle

LONG = 8000

CHILD = """
import sys, time
import offgrid_llama as og

with og.Model(sys.argv[1]) as model, og.Context(model, n_ctx=8192, n_batch=8192, n_outputs_max=1) as context:
    batch = og.Batch(8000)
    batch.add_sequence([5] * 8000)
    print("decoding", flush=True)
    try:
        context.decode(batch)
        print("finished")
    except KeyboardInterrupt:
        print(time.monotonic(), flush=True)
    there = len(context.memory.positions(0))
    batch.clear()
    batch.add(5, there, [0], logits=True)
    context.decode(batch)
    print(there, context.argmax(-1) >= 0)
"""


def interrupt(command: list[str], path: Path) -> tuple[float, int, str]:
    """Send SIGINT to a child that decodes; return the seconds until it noticed, positions in memory, its last word."""
    with subprocess.Popen([*command, CHILD, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "decoding\n"
        time.sleep(0.7)  # some way into the prompt, which takes many seconds
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        noticed, rest = child.stdout.readline(), child.stdout.read()
    assert child.returncode == 0
    there, works = rest.split()
    return float(noticed) - sent, int(there), works


def test_ctrl_c_stops_a_long_prompt_within_half_a_second(child_command: list[str], smollm2_path: Path) -> None:
    """Ctrl-C in a decode of 8,000 tokens is a KeyboardInterrupt within 0.5 s, and the context works on."""
    tries = [interrupt(child_command, smollm2_path) for _ in range(3)]
    assert statistics.median(seconds for seconds, _, _ in tries) < 0.5
    assert all(0 <= there < LONG and there % 512 == 0 for _, there, _ in tries)
    assert {works for _, _, works in tries} == {"True"}


@contextmanager
def decoding(context: og.Context) -> Iterator[list[BaseException]]:
    """Decode a long prompt on another thread for as long as the block lasts; collects what it raises."""
    batch = og.Batch(LONG)
    batch.add_sequence([5] * LONG)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            context.decode(batch)
        except og.OffgridLlamaError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not context.handle.n_in_flight and thread.is_alive():
        time.sleep(0.001)
    try:
        yield raised
    finally:
        thread.join(120)
        assert not thread.is_alive()


def long_context(model: og.Model) -> og.Context:
    """Make a context that takes a long prompt in one decode."""
    return og.Context(model, n_ctx=8192, n_batch=8192, n_outputs_max=1)


def test_cancel_stops_a_decode_on_another_thread(smollm2: og.Model) -> None:
    """cancel() ends the decode in flight with Aborted, memory keeps whole micro-batches, and the context works on."""
    with long_context(smollm2) as context:
        with decoding(context) as raised:
            while not raised:
                context.cancel()  # again: the decode may not have begun yet
                time.sleep(0.005)
        (error,) = raised
        assert isinstance(error, og.Aborted)
        assert error.code == 2
        assert not error.memory_restored
        assert len(context.memory.positions(0)) % context.n_ubatch == 0
        context.memory.clear()
        batch = og.Batch(1)
        batch.add(5, 0, [0], logits=True)
        context.decode(batch)
        assert context.argmax(-1) >= 0


def aborted(context: og.Context, batch: og.Batch) -> None:
    """Decode with a cancel() that comes before the first operation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handle, "check_open", lambda _: setattr(context._cancel, "requested", 1))
        with pytest.raises(og.Aborted):
            context.decode(batch)


@pytest.mark.parametrize("types", [EXACT, {"type_k": "q8_0", "n_threads": 1}], ids=["f32", "q8_0"])
def test_keys_are_turned_once(types: dict[str, Any], tmp_path: Path) -> None:
    """A decode that is stopped has turned all the keys of a shift, or none: the next one does not turn some twice."""
    rows = []
    twin.write_tiny_llama(tmp_path / "heads-of-64.gguf", n_head=1)
    for stop in (False, True):
        with og.Model(tmp_path / "heads-of-64.gguf") as model, og.Context(model, n_ctx=256, **types) as context:
            twin.decode(context, TOKENS)
            context.memory.remove(0, 0, 5)
            context.memory.shift(0, 5, -1, -5)
            if stop:
                batch = og.Batch(1)
                batch.add_sequence([9], 11)
                aborted(context, batch)
                assert context.memory.positions(0) == range(11)
            rows.append(twin.decode(context, [7, 8], 11))
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.parametrize("seq_ids", [[0, 1], [1, 0], [2, 0, 1]])
def test_a_stopped_decode_leaves_nothing_in_any_sequence(
    seq_ids: list[int], tiny: og.Model, weights: twin.Weights
) -> None:
    """Rows of several sequences that were not computed are in none of them."""
    with og.Context(tiny, n_ctx=256, n_seq_max=3, kv_unified=True, **EXACT) as context:
        batch = og.Batch(8)
        for pos, token in enumerate(TOKENS[:4]):
            batch.add(token, pos, seq_ids)
        context.decode(batch)
        batch.clear()
        for pos, token in enumerate(TOKENS[4:8]):
            batch.add(token, 4 + pos, seq_ids)
        aborted(context, batch)
        for seq in seq_ids:
            assert context.memory.positions(seq) == range(4)
            expected = twin.Twin(weights).sequence([*TOKENS[:4], 7])[-1:]
            np.testing.assert_allclose(twin.decode(context, [7], 4, seq), expected, rtol=0, atol=twin.CLOSE)


@pytest.mark.parametrize("owner", ["context", "model"])
def test_close_stops_a_decode_on_another_thread(smollm2_path: Path, owner: str) -> None:
    """close() of a context, or of its model, ends the decode in flight, waits for it, and frees."""
    model = og.Model(smollm2_path)
    context = long_context(model)
    with decoding(context) as raised:
        (context if owner == "context" else model).close()
        assert context.closed
    assert isinstance(raised[0], (og.Aborted, og.ClosedError))
    model.close()


def test_ctrl_c_stops_a_load(child_command: list[str], gemma_path: Path) -> None:
    """Ctrl-C while a model loads is a KeyboardInterrupt, and nothing is left behind."""
    child = subprocess.Popen(
        [*command_with(child_command, """
        import sys
        import offgrid_llama as og
        def progress(done):
            if not said:
                said.append(print("loading", flush=True))
            while len(said) == 1 and not input():
                said.append("go")
        said = []
        try:
            og.Model(sys.argv[1], progress=progress)
        except KeyboardInterrupt:
            print("interrupted")
        """), str(gemma_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout
    assert child.stdout.readline() == "loading\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60)[0] == "interrupted\n"
    assert child.returncode == 0


GENERATING = """
import sys
import offgrid_llama as og

def step(view):
    global n_steps
    n_steps += 1
    if n_steps == 8:
        print("generating", flush=True)

n_steps = 0
endless = og.SamplingParams(temperature=0, logit_bias={2: float("-inf"), 0: float("-inf")})
with og.Engine(sys.argv[1], n_seq_max=2, n_ctx=16384, on_step=step) as engine:
    try:
        engine.generate("Once upon a time", max_tokens=8000, sampling=endless)
    except KeyboardInterrupt as error:
        held = error  # with its traceback, as notebooks keep it
    engine.generate("Once", max_tokens=1)
    print(engine.stats().finished.get("cancelled"), held.__traceback__ is not None)
"""


def test_ctrl_c_cancels_what_an_engine_generates(child_command: list[str], smollm2_path: Path) -> None:
    """Ctrl-C in Engine.generate cancels the request, though the KeyboardInterrupt and its traceback are kept."""
    child = subprocess.Popen(
        [*child_command, GENERATING, str(smollm2_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert child.stdout.readline() == "generating\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=120) == ("1 True\n", "")
    assert child.returncode == 0


def command_with(command: list[str], source: str) -> list[str]:
    """Append dedented source to a child's command."""
    import textwrap

    return [*command, textwrap.dedent(source)]

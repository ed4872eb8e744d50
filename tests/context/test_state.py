"""State: what a context has computed, saved and loaded; nothing but a whole state of the same model gets through."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.caches import BOTH
from helpers.twin import CLOSE, EXACT, TOKENS, Twin, Weights, decode
from offgrid_llama.context import restoring
from offgrid_llama.context.restoring import copy_sequence
from offgrid_llama.context.state import MAGIC, checksum


def open_context(model: og.Model, *, unified: bool = False, n_seq_max: int = 3, **options: Any) -> og.Context:
    return og.Context(model, n_ctx=256 * n_seq_max, n_seq_max=n_seq_max, kv_unified=unified, **EXACT, **options)


@pytest.fixture(scope="module")
def blob(tiny: og.Model) -> bytes:
    """The bytes of a sequence's state."""
    with open_context(tiny) as context:
        decode(context, TOKENS, 0, 0)
        return bytes(context.save_state(0, TOKENS))


# Saved and loaded -----------------------------------------------------------------------------------------------------


@BOTH
def test_a_whole_context_goes_on(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """A context that loads another's state goes on in every sequence as if it had never stopped."""
    with open_context(tiny, unified=unified) as first, open_context(tiny, unified=unified) as second:
        decode(first, TOKENS, 0, 0)
        decode(first, TOKENS[::-1], 0, 2)
        state = first.save_state(tokens=TOKENS)
        decode(second, [1, 2, 3], 0, 1)
        second.load_state(og.State.from_bytes(bytes(state)))
        assert [second.memory.positions(seq) for seq in range(3)] == [range(16), range(0), range(16)]
        for seq, text in [(0, TOKENS), (2, TOKENS[::-1])]:
            expected = Twin(weights).sequence([*text, 5, 6])[-2:]
            np.testing.assert_allclose(decode(second, [5, 6], 16, seq), expected, rtol=0, atol=CLOSE)
            np.testing.assert_allclose(decode(first, [5, 6], 16, seq), expected, rtol=0, atol=CLOSE)
        assert state.tokens == tuple(TOKENS)
        assert state.seq_id is None


@BOTH
@pytest.mark.parametrize("to", [0, 2])
def test_a_sequence_goes_on_under_any_id(to: int, unified: bool, tiny: og.Model, weights: Weights) -> None:
    """A sequence's state is loaded into any sequence of any context with the same layout; the others stay."""
    with open_context(tiny, unified=unified) as first, open_context(tiny, unified=unified) as second:
        decode(first, TOKENS, 0, 1)
        decode(first, [9, 9, 9], 0, 0)
        decode(second, [4, 4], 0, to)
        decode(second, [7, 8], 0, 1)
        second.load_state(first.save_state(1), to)
        assert second.memory.positions(to) == range(16)
        expected = Twin(weights).sequence([*TOKENS, 5])[-1:]
        np.testing.assert_allclose(decode(second, [5], 16, to), expected, rtol=0, atol=CLOSE)
        expected = Twin(weights).sequence([7, 8, 5])[-1:]
        np.testing.assert_allclose(decode(second, [5], 2, 1), expected, rtol=0, atol=CLOSE)


def test_a_copy_through_host_memory(tiny: og.Model, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence has what another one holds, and nothing of its own; where that fails it is empty."""
    with open_context(tiny) as context:
        decode(context, TOKENS, 0, 0)
        decode(context, [9] * 30, 0, 1)
        copy_sequence(context.memory, 0, 1)
        expected = Twin(weights).sequence([*TOKENS, 5])[-1:]
        for seq in (0, 1):
            assert context.memory.positions(seq) == range(16)
            np.testing.assert_allclose(decode(context, [5], 16, seq), expected, rtol=0, atol=CLOSE)
        context.memory.copy(0, 2)
        for source, target in ((2, 1), (1, 2)):
            with pytest.raises(og.StateError, match="next decode"):
                copy_sequence(context.memory, source, target)
        decode(context, [5], 17, 0)

        def some(count: int, size: int, calls: list[int] = []) -> None:  # noqa: B006
            calls.append(count)
            if len(calls) == 3:
                raise og.StateError("no room")

        monkeypatch.setattr(restoring, "check_count", some)
        with pytest.raises(og.StateError, match="no room"):
            copy_sequence(context.memory, 0, 1)
        assert context.memory.positions(1) == range(0)
        assert context.memory.positions(0) == range(18)


def test_a_real_model_goes_on(smollm2: og.Model) -> None:
    """The text after a load is the text that would have come."""
    tokens = smollm2.vocab.tokenize("The capital of France is")
    texts = []
    with og.Context(smollm2, n_ctx=256) as first, og.Context(smollm2, n_ctx=512) as second:
        first.decode(_batch(tokens[:-1], 0))
        second.load_state(first.save_state(0, tokens[:-1]), 0)
        for context in (first, second):
            token, text = tokens[-1], b""
            for pos in range(len(tokens) - 1, len(tokens) + 7):
                context.decode(_batch([token], pos))
                token = context.argmax(-1)
                text += smollm2.vocab.piece(token)
            texts.append(text)
    assert texts[0] == texts[1]
    assert b"Paris" in texts[0]


def _batch(tokens: list[int], pos: int) -> og.Batch:
    batch = og.Batch(len(tokens))
    batch.add_sequence(tokens, pos)
    return batch


@pytest.mark.parametrize("swa_full", [True, False])
def test_a_sliding_window_goes_on(swa_full: bool, gemma: og.Model) -> None:
    """A sequence with sliding-window layers goes on, too."""
    tokens = gemma.vocab.tokenize("Once upon a time there was a small house by the sea. " * 60)
    assert len(tokens) > gemma.n_swa
    # Flash attention adds up in another order when the cells lie in other places.
    options: dict[str, Any] = {"n_ctx": 1024, "swa_full": swa_full, "n_threads": 1, "flash_attn_type": "disabled"}
    with og.Context(gemma, **options) as first, og.Context(gemma, **options) as second:
        first.decode(_batch(tokens[:-1], 0))
        second.load_state(first.save_state(0), 0)
        rows = []
        for context in (first, second):
            context.decode(_batch(tokens[-1:], len(tokens) - 1))
            rows.append(context.logits(-1).copy())
    np.testing.assert_array_equal(rows[0], rows[1])


def test_an_empty_context_is_a_state(tiny: og.Model) -> None:
    """A context that has computed nothing can be saved, and loading that empties another."""
    with open_context(tiny) as first, open_context(tiny) as second:
        decode(second, TOKENS, 0, 1)
        second.load_state(first.save_state())
        assert second.memory.positions(1) == range(0)
        decode(second, TOKENS, 0, 1)
        second.load_state(first.save_state(0), 1)
        assert second.memory.positions(1) == range(0)


def test_what_waits_for_the_next_decode_cannot_be_saved(tiny: og.Model, weights: Weights) -> None:
    """Between a copy or shift and the next decode the data is not where it belongs; saving it is refused."""
    with open_context(tiny) as context:
        decode(context, TOKENS, 0, 0)
        context.memory.copy(0, 1)
        with pytest.raises(og.StateError, match="decode something first"):
            context.save_state(1)
        decode(context, [5], 16, 0)
        state = context.save_state(1)
        context.memory.remove(0, 0, 4)
        context.memory.shift(0, 4, -1, -4)
        with pytest.raises(og.StateError, match="decode something first"):
            context.save_state()
        context.load_state(state, 2)
        expected = Twin(weights).sequence([*TOKENS, 7])[-1:]
        np.testing.assert_allclose(decode(context, [7], 16, 2), expected, rtol=0, atol=CLOSE)


def test_what_a_copy_would_write_over_is_not_loaded(tiny: og.Model, weights: Weights) -> None:
    """A copy between streams is made by the next decode, even after clear(): nothing is loaded or restored before it."""
    with open_context(tiny) as context:
        decode(context, TOKENS, 0, 0)
        state, snapshot, whole = context.save_state(0), context.snapshot(0), context.save_state()
        context.memory.clear()
        decode(context, TOKENS[::-1], 0, 0)
        context.memory.copy(0, 1)
        context.memory.clear()
        with pytest.raises(og.StateError, match="decode something first"):
            context.load_state(state, 1)
        with pytest.raises(og.StateError, match="decode something first"):
            context.load_state(whole)
        with pytest.raises(og.StateError, match="decode something first"):
            context.restore(snapshot, 1)
        decode(context, [1], 0, 0)
        context.load_state(state, 1)
        expected = Twin(weights).sequence([*TOKENS, 7])[-1:]
        np.testing.assert_allclose(decode(context, [7], 16, 1), expected, rtol=0, atol=CLOSE)


# Snapshots ------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_snapshot_forks(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """A sequence goes back to its snapshot, and others go on from it, as if they had computed it; again and again."""
    with open_context(tiny, unified=unified) as context:
        decode(context, TOKENS, 0, 1)
        snapshot = context.snapshot(1)
        decode(context, TOKENS[::-1], 16, 1)
        for seq_id, follow in ((None, [5, 6]), (0, [9, 2]), (2, [7, 7]), (1, [3, 4])):
            context.restore(snapshot, seq_id)
            seq = 1 if seq_id is None else seq_id
            assert context.memory.positions(seq) == range(16)
            expected = Twin(weights).sequence([*TOKENS, *follow])[-2:]
            np.testing.assert_allclose(decode(context, follow, 16, seq), expected, rtol=0, atol=CLOSE)
        context.memory.clear()
        decode(context, [1, 2, 3], 0, 2)
        context.restore(snapshot, 0)
        expected = Twin(weights).sequence([*TOKENS, 8])[-1:]
        np.testing.assert_allclose(decode(context, [8], 16, 0), expected, rtol=0, atol=CLOSE)


def test_a_snapshot_is_the_last_of_its_sequence(tiny: og.Model, weights: Weights) -> None:
    """llama.cpp keeps one for each sequence: an older one is refused, and the newer one is untouched by that."""
    with open_context(tiny) as context:
        decode(context, TOKENS, 0, 0)
        old = context.snapshot(0)
        decode(context, [5], 16, 0)
        new, other = context.snapshot(0), context.snapshot(1)
        with pytest.raises(og.StateError, match="later snapshot of sequence 0"):
            context.restore(old)
        context.restore(new, 2)
        expected = Twin(weights).sequence([*TOKENS, 5, 6])[-1:]
        np.testing.assert_allclose(decode(context, [6], 17, 2), expected, rtol=0, atol=CLOSE)
        context.restore(other, 2)
        assert context.memory.positions(2) == range(0)


def test_what_no_snapshot_is_taken_of_or_restored(tiny: og.Model, smollm2: og.Model) -> None:
    """Quantized caches, of which llama.cpp copies a part; other contexts; other objects; sequences that are not there."""
    for name in ("type_k", "type_v"):
        with (
            og.Context(smollm2, n_ctx=64, **{name: "q8_0"}) as context,  # type: ignore[arg-type]
            pytest.raises(og.StateError, match=f"{name}='q8_0'"),
        ):
            context.snapshot(0)
    with open_context(tiny) as context, open_context(tiny) as another:
        decode(context, TOKENS, 0, 0)
        snapshot = context.snapshot(0)
        with pytest.raises(og.StateError, match="of another context"):
            another.restore(snapshot)
        with pytest.raises(TypeError, match="must be a Snapshot, not State; for a State see load_state"):
            context.restore(context.save_state(0))  # type: ignore[arg-type]
        for seq_id in (-1, 3):
            with pytest.raises(ValueError, match="seq_id must be from 0 to 2"):
                context.snapshot(seq_id)
            with pytest.raises(ValueError, match="seq_id must be from 0 to 2"):
                context.restore(snapshot, seq_id)
        context.memory.copy(0, 1)
        with pytest.raises(og.StateError, match="decode something first"):
            context.snapshot(0)
    with pytest.raises(og.ClosedError):
        context.restore(snapshot)


def test_a_snapshot_for_which_there_is_no_room(tiny: og.Model) -> None:
    """Where the cells are taken, restoring fails with an error, the sequence is empty, and the others are untouched."""
    with open_context(tiny, unified=True, n_seq_max=2) as context:
        decode(context, [1] * 200, 0, 0)
        snapshot = context.snapshot(0)
        decode(context, [2] * 250, 0, 1)
        decode(context, [1] * 60, 200, 0)
        context.memory.remove(0)
        decode(context, [3] * 200, 250, 1)
        with pytest.raises(og.StateError, match="could not save or restore"):
            context.restore(snapshot, 0)
        assert context.memory.positions(0) == range(0)
        assert context.memory.positions(1) == range(450)


# Files ----------------------------------------------------------------------------------------------------------------


def test_files(tiny: og.Model, tmp_path: Path, weights: Weights) -> None:
    """A file holds a state; nothing else is left in its folder."""
    path = tmp_path / "state"
    with open_context(tiny) as context:
        decode(context, TOKENS, 0, 0)
        state = context.save_state(0, TOKENS)
        state.save(path)
        assert path.read_bytes() == bytes(state)
        assert os.listdir(tmp_path) == ["state"]
        context.memory.clear()
        loaded = og.State.load(path)
        assert loaded.tokens == tuple(TOKENS)
        context.load_state(loaded, 0)
        expected = Twin(weights).sequence([*TOKENS, 7])[-1:]
        np.testing.assert_allclose(decode(context, [7], 16, 0), expected, rtol=0, atol=CLOSE)


def test_a_file_is_replaced_whole(blob: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails leaves what was there before, and no other file."""
    path = tmp_path / "state"
    path.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        og.State.from_bytes(blob).save(path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["state"]


def test_files_that_are_no_state(tmp_path: Path) -> None:
    """A file that is not there is an OSError; one that is something else is a StateError with its name."""
    with pytest.raises(FileNotFoundError):
        og.State.load(tmp_path / "none")
    (tmp_path / "other").write_bytes(b"something else entirely, and long enough to hold a checksum")
    with pytest.raises(og.StateError, match="other: this is no state"):
        og.State.load(tmp_path / "other")


# Refusals -------------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(data=st.data())
def test_damage_is_found(data: st.DataObject, blob: bytes) -> None:
    """No byte may be changed, left out or added."""
    at = data.draw(st.integers(0, len(blob) - 1))
    kind = data.draw(st.sampled_from(["change", "cut", "insert", "remove"]))
    bad = bytearray(blob)
    if kind == "change":
        bad[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del bad[at:]
    elif kind == "insert":
        bad.insert(at, data.draw(st.integers(0, 255)))
    else:
        del bad[at]
    if bytes(bad) == blob:  # an insertion beside its like
        return
    with pytest.raises(og.StateError):
        og.State.from_bytes(bad)


def test_thousands_of_mutated_states(blob: bytes) -> None:
    """Of many states with a few bytes changed none is taken."""
    rng = random.Random(5)
    for _ in range(2000):
        bad = bytearray(blob)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] ^= rng.randrange(1, 256)
        if bad != blob:
            with pytest.raises(og.StateError):
                og.State.from_bytes(bad)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda header: header.pop("n_bytes"), "cannot be read"),
        (lambda header: header.update(n_tokens=-1), "does not fit"),
        (lambda header: header.update(n_tokens=10**9), "does not fit|cannot be read"),
        (lambda header: header.update(n_bytes="many"), "cannot be read"),
        (lambda header: header.update(seq_id="a"), "does not fit"),
        (lambda header: header.update(model=None), "another model"),
    ],
)
def test_headers_that_were_made_up(change: Any, error: str, tiny: og.Model, blob: bytes) -> None:
    """A forged header with a good checksum is refused if it does not fit the rest, or the context."""
    begin = len(MAGIC) + 4
    (size,) = struct.unpack_from("<I", blob, len(MAGIC))
    header = json.loads(blob[begin : begin + size])
    change(header)
    head = json.dumps(header).encode()
    made = blob[: len(MAGIC)] + struct.pack("<I", len(head)) + head + blob[begin + size : -32]
    with pytest.raises(og.StateError, match=error), open_context(tiny) as context:
        context.load_state(og.State.from_bytes(made + checksum(memoryview(made))), 0)


def test_another_version(blob: bytes) -> None:
    """A layout of another version says so."""
    with pytest.raises(og.StateError, match="version 9"):
        og.State.from_bytes(blob[:7] + b"\x09" + blob[8:])


def test_another_model_is_refused(tiny: og.Model, tmp_path: Path, blob: bytes) -> None:
    """A state of other weights is refused, though all shapes are the same; under another name the same file is fine."""
    same, other = tmp_path / "same.gguf", tmp_path / "other.gguf"
    same.write_bytes(tiny.path.read_bytes())
    data = bytearray(same.read_bytes())
    data[-3] ^= 1
    other.write_bytes(data)
    state = og.State.from_bytes(blob)
    with og.Model(other) as model, open_context(model) as context:
        decode(context, TOKENS, 0, 0)
        with pytest.raises(og.StateError, match="another model"):
            context.load_state(state, 0)
        assert context.memory.positions(0) == range(16)
        assert model.fingerprint() != tiny.fingerprint()
    with og.Model(same) as model, open_context(model) as context:
        context.load_state(state, 0)
        assert context.memory.positions(0) == range(16)
        assert model.fingerprint() == tiny.fingerprint()


def test_a_file_that_was_replaced_has_no_fingerprint(tiny: og.Model, tmp_path: Path) -> None:
    """A fingerprint is never that of a file that took the model's place."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny.path.read_bytes())
    with og.Model(path) as model:
        replacement = tmp_path / "new.gguf"
        replacement.write_bytes(tiny.path.read_bytes())
        os.replace(replacement, path)
        with pytest.raises(og.ModelLoadError, match="changed"):
            model.fingerprint()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"unified": True}, "kv unified"),
        ({"n_seq_max": 2}, "n seq max"),
        ({"type_k": "f16"}, "type k"),
        ({"swa_full": False}, "swa full"),
    ],
)
def test_another_layout_is_refused(options: dict[str, Any], name: str, tiny: og.Model, blob: bytes) -> None:
    """A context that keeps its cells in another way refuses the state by the name of what differs."""
    exact = {key: value for key, value in EXACT.items() if key not in options}
    unified, n_seq_max = options.pop("unified", False), options.pop("n_seq_max", 3)
    arguments = {**exact, **options}
    with og.Context(tiny, n_ctx=256 * n_seq_max, n_seq_max=n_seq_max, kv_unified=unified, **arguments) as context:
        decode(context, TOKENS, 0, 0)
        with pytest.raises(og.StateError, match=name.replace(" ", ".")):
            context.load_state(og.State.from_bytes(blob), 0)
        assert context.memory.positions(0) == range(16)


def test_no_room(tiny: og.Model) -> None:
    """A state with more positions than the context has room for is refused, and what it took the place of is empty."""
    with og.Context(tiny, n_ctx=1024, **EXACT) as large, og.Context(tiny, n_ctx=256, **EXACT) as small:
        decode(large, (TOKENS * 32)[:500], 0, 0)
        decode(small, TOKENS, 0, 0)
        with pytest.raises(og.StateError, match="could not"):
            small.load_state(large.save_state(0), 0)
        assert small.memory.positions(0) == range(0)
        decode(small, TOKENS, 0, 0)
        with pytest.raises(og.StateError, match="could not"):
            small.load_state(large.save_state())
        assert small.memory.positions(0) == range(0)
        decode(small, TOKENS, 0, 0)


def test_arguments(tiny: og.Model, blob: bytes) -> None:
    """Wrong arguments are named."""
    state = og.State.from_bytes(blob)
    with open_context(tiny) as context:
        for seq_id in (-1, 3, 2**40):
            with pytest.raises(ValueError, match="seq_id"):
                context.save_state(seq_id)
            with pytest.raises(ValueError, match="seq_id"):
                context.load_state(state, seq_id)
        with pytest.raises(og.StateError, match="one sequence"):
            context.load_state(state)
        with pytest.raises(og.StateError, match="whole context"):
            context.load_state(context.save_state(), 0)
        with pytest.raises(TypeError, match="State"):
            context.load_state(blob, 0)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"tokens\[0\]"):
            context.save_state(0, ["a"])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="bytes"):
            og.State.from_bytes("text")  # type: ignore[arg-type]
    with pytest.raises(og.ClosedError):
        context.save_state()
    with pytest.raises(og.ClosedError):
        context.load_state(state, 0)


def test_repr_and_size(blob: bytes) -> None:
    """A state says what it is."""
    state = og.State.from_bytes(blob)
    assert (len(state), state.n_bytes, state.seq_id) == (len(blob), len(blob), 0)
    assert repr(state) == f"<State of sequence 0: {len(blob):,} bytes, 16 tokens>"

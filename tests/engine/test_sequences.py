"""Callers look at an engine's sequences, choose one, and save, load and erase what it holds."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.engines import ENDLESS, GREEDY, SURE, driven, make, turns
from offgrid_llama.errors import StateError

PROMPT = list(range(7, 40))


def test_a_request_gets_the_sequence_that_it_names(letters: og.Model) -> None:
    """It waits for that sequence, while requests behind it take others."""
    engine = driven(letters, 2, steps_in_a_call=1)
    with engine:
        first = engine.submit(PROMPT, max_tokens=30, sampling=SURE, seq_id=1)
        second = engine.submit(PROMPT, max_tokens=3, sampling=SURE, seq_id=1)
        other = engine.submit([50, 51], max_tokens=3, sampling=SURE)
        turns(engine, 6)
        running = {view.seq_id: view.running for view in engine.sequences.views()}
        assert running[1]
        assert other.done
        assert not second.answers[0].tokens
        turns(engine)
        assert second.tokens == first.tokens[:3]
        assert [answer.request.seq for answer in (*first.answers, *second.answers, *other.answers)] == [1, 1, 0]


def test_a_sequence_that_is_not_there(engine: og.Engine) -> None:
    """It is refused by name."""
    with pytest.raises(ValueError, match="seq_id must be from 0 to 3"):
        engine.submit(PROMPT, seq_id=4)
    with pytest.raises(ValueError, match="seq_id"):
        engine.sequences.erase(4)


def test_what_a_sequence_holds_is_saved_and_read_back(letters: og.Model, tmp_path: Path) -> None:
    """Another engine of the same model goes on from the file, in any sequence, with the same tokens."""
    with make(letters) as engine:
        said = engine.generate(PROMPT, max_tokens=20, sampling=ENDLESS, seq_id=2)
        saved = engine.sequences.save(2, tmp_path / "two")
        assert saved.n_tokens == len(PROMPT) + len(said.tokens) - 1
        assert saved.n_bytes == (tmp_path / "two").stat().st_size
        turn = [*PROMPT, *said.tokens, 50]
        expected = engine.generate(turn, max_tokens=5, **GREEDY).tokens
    with make(letters) as engine:
        assert engine.sequences.load(0, tmp_path / "two").n_tokens == saved.n_tokens
        assert engine.sequences.views()[0].n_tokens == saved.n_tokens
        again = engine.generate(turn, max_tokens=5, seq_id=0, **GREEDY)
        assert (again.tokens, again.usage.cached_tokens) == (expected, saved.n_tokens)


def test_what_was_erased_is_computed_again(engine: og.Engine) -> None:
    """An erased sequence holds nothing."""
    engine.generate(PROMPT, max_tokens=5, seq_id=1, **GREEDY)
    assert engine.sequences.erase(1).n_tokens == len(PROMPT) + 4
    assert engine.sequences.views()[1].n_tokens == 0
    assert engine.generate(PROMPT, max_tokens=5, **GREEDY).usage.cached_tokens == 0


def test_a_sequence_in_use_is_saved_when_it_is_free(letters: og.Model, tmp_path: Path) -> None:
    """The call waits for the end of the request, and saves what it has computed, too."""
    engine = driven(letters, 2)
    with engine:
        completion = engine.submit(PROMPT, max_tokens=10, sampling=ENDLESS, seq_id=0)
        turns(engine, 1)
        found: list[int] = []
        saving = threading.Thread(target=lambda: found.append(engine.sequences.save(0, tmp_path / "s").n_tokens))
        saving.start()
        while saving.is_alive():
            engine._loop.turn()
        assert completion.done
        assert found == [len(PROMPT) + 9]


def test_requests_of_another_salt_find_nothing(engine: og.Engine, tmp_path: Path) -> None:
    """A sequence that one client has computed is not saved for another, and a loaded one is found by its owner only."""
    engine.generate(PROMPT, max_tokens=2, cache_salt="one", seq_id=0, **GREEDY)
    for salt in ("", "other"):
        with pytest.raises(StateError, match="holds nothing"):
            engine.sequences.save(0, tmp_path / "one", salt)
    engine.sequences.save(0, tmp_path / "one", "one")
    engine.sequences.erase(0)
    engine.sequences.load(0, tmp_path / "one", "one")
    cached = [
        engine.generate(PROMPT, max_tokens=1, cache_salt=salt, **GREEDY).usage.cached_tokens for salt in ("", "one")
    ]
    assert cached == [0, len(PROMPT) - 1]


def test_a_file_that_is_no_sequence(engine: og.Engine, tmp_path: Path) -> None:
    """It is refused, and the sequence stays as it was."""
    engine.generate(PROMPT, max_tokens=2, seq_id=0, **GREEDY)
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    with pytest.raises(StateError):
        engine.sequences.load(0, tmp_path / "junk")
    with pytest.raises(FileNotFoundError):
        engine.sequences.load(0, tmp_path / "none")
    assert engine.generate(PROMPT, max_tokens=1, **GREEDY).usage.cached_tokens == len(PROMPT) - 1


@pytest.mark.parametrize("kv_unified", [False, True])
def test_loading_makes_room(letters: og.Model, tmp_path: Path, kv_unified: bool) -> None:
    """A loaded sequence takes the place of what others hold, and the engine goes on."""
    with make(letters, 4, n_ctx=256 if kv_unified else 1024, kv_unified=kv_unified) as engine:
        engine.generate([9] * 150, max_tokens=2, seq_id=0, **GREEDY)
        engine.sequences.save(0, tmp_path / "s")
        engine.generate([10] * 80, max_tokens=2, seq_id=1, **GREEDY)
        engine.sequences.load(2, tmp_path / "s")
        assert engine.generate([9] * 150, max_tokens=2, **GREEDY).usage.cached_tokens == 149
        assert len(engine.generate([11] * 200, max_tokens=2, sampling=ENDLESS).tokens) == 2

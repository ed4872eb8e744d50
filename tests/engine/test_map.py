"""Engine.map: many prompts or conversations, some of which run at a time, and their answers in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import offgrid_llama as og
from helpers.engines import GREEDY, SURE, idle, make, settle


def test_answers_come_in_order(engine: og.Engine) -> None:
    """Each is that of its prompt, whichever ends first."""
    prompts = [[7 + i % 50, 8, 9 + i // 50] for i in range(80)]
    found = list(engine.map(prompts, max_tokens=5, sampling=SURE))
    assert [each.tokens for each in found] == [
        engine.generate(prompt, max_tokens=5, sampling=SURE).tokens for prompt in prompts
    ]
    assert list(engine.map([])) == []
    idle(engine)


@pytest.mark.parametrize("concurrency", [1, 3, None])
def test_items_are_taken_as_they_are_needed(engine: og.Engine, concurrency: int | None) -> None:
    """No more are submitted than ``concurrency``, by default four for each sequence."""
    taken = 0

    def prompts() -> Iterator[list[int]]:
        nonlocal taken
        for i in range(60):
            taken += 1
            yield [7, 8 + i % 40]

    done = 0
    for each in engine.map(prompts(), concurrency=concurrency, max_tokens=3, sampling=SURE):
        done += 1
        assert each.done
        assert taken - done < (concurrency or 16)
    assert (taken, done) == (60, 60)


def test_an_end_cancels_what_runs(letters: og.Model) -> None:
    """Whether the caller leaves, or an item fails."""
    with make(letters) as engine:
        answers = engine.map(([7, 8] for _ in range(1000)), max_tokens=100, sampling=SURE)
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        settle(engine)
        assert engine.stats().finished["length"] < 30
        with pytest.raises(og.ContextLengthError):
            list(engine.map([[7], [7] * 999, *[[8]] * 50], max_tokens=100, sampling=SURE))
        settle(engine)
        idle(engine)


def test_errors_in_the_place_of_answers(letters: og.Model) -> None:
    """One item that fails harms no other, whether it cannot be submitted or fails later."""

    def fail(*_: Any) -> None:
        raise LookupError("a processor")

    with make(letters) as engine:
        found = list(engine.map([[7], [7] * 999, [8]], return_exceptions=True, max_tokens=2, sampling=SURE))
        assert isinstance(found[1], og.ContextLengthError)
        assert [len(each.tokens) for each in (found[0], found[2])] == [2, 2]
        (late,) = engine.map([[7]], return_exceptions=True, logits_processors=[fail])
        assert isinstance(late, LookupError)
        with pytest.raises(LookupError, match="a processor"):
            list(engine.map([[7]], logits_processors=[fail]))
        settle(engine)


def test_conversations_and_prompts(smollm2: og.Model) -> None:
    """Conversations are answered as chat answers them, texts as submit does."""
    asked = [{"role": "user", "content": "What is 2+2?"}]
    with og.Engine(smollm2, n_seq_max=2, n_ctx=512) as engine:
        said, completed = engine.map([asked, "The capital of France is"], max_tokens=12, **GREEDY)
        assert isinstance(said, og.ChatCompletion)
        assert said.content == engine.chat(asked, max_tokens=12, **GREEDY).result().content
        assert isinstance(completed, og.Completion)
        assert completed.text.startswith(" Paris")


def test_arguments_of_the_wrong_kind(engine: og.Engine) -> None:
    """The error names them."""
    with pytest.raises(TypeError, match="put it into a list"):
        engine.map("a prompt")
    with pytest.raises(ValueError, match="concurrency"):
        engine.map([[7]], concurrency=0)
    with pytest.raises(TypeError, match="temprature"):
        list(engine.map([[7]], temprature=0))  # type: ignore[call-arg]

"""Predictions: the answers are the same, and what came of a prediction is counted."""

from __future__ import annotations

import pytest

import offgrid_llama as og
from helpers.costs import FREE
from helpers.engines import ENDLESS, SURE, driven, idle, loop_of, make, turns

PROMPT = [7, 30, 9, 41]


@pytest.fixture(scope="module")
def answer(letters: og.Model) -> list[int]:
    with make(letters) as engine:
        return engine.generate(PROMPT, max_tokens=60, sampling=SURE).tokens


@pytest.mark.parametrize("change", [0, 20, 59])
def test_the_answer_is_the_same(letters: og.Model, answer: list[int], change: int) -> None:
    """With a prediction that is right but for one token; what came of it is counted, and saves steps."""
    prediction = [*answer[:change], 6 if answer[change] != 6 else 7, *answer[change + 1 :]]
    n_steps = []
    for predicted in (None, prediction):
        with driven(letters, steps_in_a_call=1) as engine:
            loop_of(engine).scheduler.estimates.costs = FREE
            found = engine.submit(PROMPT, max_tokens=60, sampling=SURE, prediction=predicted)
            turns(engine)
            assert found.tokens == answer
            n_steps.append(engine.stats().n_steps)
            idle(engine)
    assert (found.usage.accepted_prediction_tokens, found.usage.rejected_prediction_tokens) == (59, 1)
    assert n_steps[1] < min(n_steps[0], 20)


def test_a_prediction_that_is_wrong(letters: og.Model, answer: list[int]) -> None:
    """Nothing of it came."""
    with make(letters) as engine:
        found = engine.generate(PROMPT, max_tokens=60, sampling=SURE, prediction=[6, 5] * 20)
        assert found.tokens == answer
        assert (found.usage.accepted_prediction_tokens, found.usage.rejected_prediction_tokens) == (0, 40)
        assert engine.generate(PROMPT, max_tokens=5).usage.rejected_prediction_tokens == 0


def test_as_text_with_samplers_and_for_several(letters: og.Model) -> None:
    """A prediction may be text; with a seed the draws are the same; each answer follows it by itself."""
    with make(letters) as engine:
        plain = engine.generate(PROMPT, max_tokens=40, sampling=ENDLESS, n=2)
        text = letters.vocab.detokenize(plain.tokens)
        found = engine.generate(PROMPT, max_tokens=40, sampling=ENDLESS, n=2, prediction=text)
        assert [each.tokens for each in found.answers] == [each.tokens for each in plain.answers]
        n = len(letters.vocab.tokenize(text, add_special=False))
        usage = found.usage
        assert usage.accepted_prediction_tokens + usage.rejected_prediction_tokens == 2 * n
        assert usage.accepted_prediction_tokens >= min(n, 30)


def test_what_cannot_be(letters: og.Model) -> None:
    """Token ids that the vocabulary does not have, and no text."""
    with make(letters) as engine:
        with pytest.raises(TypeError, match="prediction"):
            engine.submit(PROMPT, prediction=5)  # type: ignore[arg-type]
        for wrong in ([61], [-1]):
            with pytest.raises(ValueError, match="prediction"):
                engine.submit(PROMPT, prediction=wrong)

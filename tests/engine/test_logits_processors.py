"""Processors and hooks see the logits of each step, and have the last word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.engines import ENDLESS, alone, idle, make, settle


def test_processors_that_do_nothing(engine: og.Engine) -> None:
    """They get the text so far and its logits; the answer is the one without them, for every kind of sampler."""
    seen: list[list[int]] = []

    def nothing(tokens: Any, logits: Any) -> None:
        assert logits.shape == (61,)
        assert logits.dtype == np.float32
        seen.append(list(tokens))

    prompt = engine.model.vocab.tokenize("abc")
    for sampling, logprobs in ((ENDLESS, 2), (og.SamplingParams(mirostat=2, seed=1), None)):
        plain = engine.generate("abc", max_tokens=8, sampling=sampling, logprobs=logprobs)
        seen.clear()
        same = engine.generate("abc", max_tokens=8, sampling=sampling, logprobs=logprobs, logits_processors=[nothing])
        assert (same.text, same.finish_reason) == (plain.text, plain.finish_reason)
        assert [own for own, _ in same.logprobs] == pytest.approx([own for own, _ in plain.logprobs], abs=1e-4)
        assert seen == [[*prompt, *same.tokens[:i]] for i in range(len(seen))]
        assert len(same.logprobs) == (len(same.tokens) if logprobs else 0)


def test_processors_have_the_last_word(engine: og.Engine) -> None:
    """They may write to the logits, or return others; one after the other."""

    def only(token: int) -> Any:
        def write(_tokens: Any, logits: Any) -> None:
            kept = logits[token]
            logits[:] = -np.inf
            logits[token] = kept

        return write

    assert engine.generate("abc", max_tokens=4, logits_processors=[only(33)], temperature=0).tokens == [33] * 4
    ones = np.arange(61, dtype=np.float32)
    last = engine.generate("abc", max_tokens=2, logits_processors=[only(33), lambda *_: ones], temperature=0)
    assert last.tokens == [60, 60]
    with pytest.raises(TypeError, match="logits_processors"):
        engine.submit("abc", logits_processors=[3])  # type: ignore[list-item]


def test_a_processor_that_raises(engine: og.Engine, letters: og.Model) -> None:
    """Its own request ends with what it raised, the others go on."""

    def fail(tokens: Any, logits: Any) -> Any:
        if len(tokens) > 8:
            raise ZeroDivisionError("mine")

    good = engine.submit("abc", max_tokens=30, sampling=ENDLESS)
    bad = engine.submit([9, 8], max_tokens=30, sampling=ENDLESS, logits_processors=[fail])
    shape = engine.submit([9, 8], max_tokens=30, logits_processors=[lambda *_: np.zeros(5, np.float32)])
    with pytest.raises(ZeroDivisionError):
        bad.result()
    with pytest.raises(ValueError, match="broadcast"):
        shape.result()
    assert len(bad.tokens) == 7
    assert good.result().tokens == alone(letters, letters.vocab.tokenize("abc"), 30, ENDLESS)[0]
    settle(engine)
    idle(engine)


def test_a_hook_for_each_step(letters: og.Model, caplog: pytest.LogCaptureFixture) -> None:
    """It gets the logits of all requests that sample a token, as one array, and they sample from its result."""
    seen: list[int] = []

    def hook(step: og.engine.StepView) -> None:
        seen.append(len(step.answers))
        assert step.logits.shape == (len(step.answers), 61)
        for answer, row in zip(step.answers, step.logits, strict=True):
            row[:] = 0
            row[20 + answer.index] = 9
        if len(seen) == 3:
            raise ZeroDivisionError("mine")

    with make(letters, on_step=hook) as engine:
        completion = engine.generate([9] * 20, n=3, max_tokens=12, temperature=0)
        assert [answer.tokens for answer in completion.answers] == [[20 + i] * 12 for i in range(3)]
    assert max(seen) == 3
    assert "ZeroDivisionError: mine" in caplog.text

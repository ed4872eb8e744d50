"""Engine: what its users see of it. Each request gets what it gets alone, while others come, go or fail."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.engines import ENDLESS, GREEDY, N_CTX_SEQ, alone, driven, idle, make, runner_of, settle, turns
from helpers.twin import EXACT
from offgrid_llama.engine import FinishReason

# Answers ----------------------------------------------------------------------------------------------------------------


def test_one_request(letters: og.Model, engine: og.Engine) -> None:
    """Greedy text is that of a loop over the nouns; the Completion says how it came about."""
    prompt = letters.vocab.tokenize("hello")
    completion = engine.generate("hello", max_tokens=20, **GREEDY)
    tokens, reason = alone(letters, prompt, 20, og.SamplingParams(temperature=0))
    assert completion.tokens == tokens
    assert completion.text == letters.vocab.detokenize(tokens)
    assert completion.finish_reason == reason
    assert completion.done
    assert completion.usage == og.engine.Usage(len(prompt), 0, len(tokens))
    timings = completion.timings
    assert None not in (timings.queue, timings.prefill, timings.first_token, timings.decode)


def test_the_twins_are_the_same(engine: og.Engine) -> None:
    """generate, stream and their awaitable twins give the same text, also for chains of llama.cpp's samplers."""
    for options in (GREEDY, {"seed": 5}, {"sampling": og.SamplingParams(mirostat=2, seed=5)}):
        whole = engine.generate("abc", max_tokens=30, **options)
        pieces = list(engine.stream("abc", max_tokens=30, **options))

        async def both(options: dict[str, Any] = options) -> tuple[og.Completion, list[og.Piece]]:
            return (
                await engine.generate_async("abc", max_tokens=30, **options),
                [piece async for piece in engine.stream_async("abc", max_tokens=30, **options)],
            )

        later, later_pieces = asyncio.run(both())
        assert whole.text == later.text == "".join(piece.text for piece in pieces)
        assert "".join(piece.text for piece in later_pieces) == whole.text
        assert [token for piece in pieces for token in piece.tokens] == whole.tokens == later.tokens
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [whole.finish_reason]


def test_seeds(engine: og.Engine) -> None:
    """The same seed gives the same answer beside any neighbours; the n answers have seeds of their own."""
    first = engine.generate("abc", max_tokens=30, seed=11, n=3)
    neighbours = [engine.submit([9 + i, 8, 7], max_tokens=50) for i in range(6)]
    again = [engine.submit("abc", max_tokens=30, seed=11 + i) for i in range(3)]
    assert [answer.tokens for answer in first.answers] == [each.result().tokens for each in again]
    assert len({tuple(answer.tokens) for answer in first.answers}) == 3
    assert [answer.seed for answer in first.answers] == [11, 12, 13]
    for each in neighbours:
        each.result()


def test_n_answers_share_the_prompt(engine: og.Engine, letters: og.Model) -> None:
    """The prompt is computed once, but for its last token; each answer's pieces carry its index."""
    prompt = list(range(7, 57))
    completion = engine.generate(prompt, max_tokens=9, n=4, seed=1)
    assert [answer.request.n_cached for answer in completion.answers] == [0, 49, 49, 49]
    assert completion.usage.completion_tokens == sum(len(answer.tokens) for answer in completion.answers)
    for answer in completion.answers:
        pieces = [piece for piece in completion if piece.index == answer.index]
        assert "".join(piece.text for piece in pieces) == answer.text
        assert answer.tokens == alone(letters, prompt, 9, og.SamplingParams(seed=answer.seed))[0]


def test_stop_strings(engine: og.Engine) -> None:
    """The text ends before the stop string, and the tokens with the one that completes it."""
    whole = engine.generate("abc", max_tokens=60, sampling=ENDLESS)
    stop = whole.text[10:14]
    at = whole.text.index(stop)
    stopped = engine.generate("abc", max_tokens=60, sampling=ENDLESS, stop=[stop, "never"], n=2)
    assert (stopped.text, stopped.finish_reason, stopped.stop) == (whole.text[:at], FinishReason.STOP, stop)
    assert stopped.tokens == whole.tokens[: len(stopped.tokens)]
    assert engine.model.vocab.detokenize(stopped.tokens) == whole.text[: at + 4]
    last = engine.generate("abc", max_tokens=len(stopped.tokens), sampling=ENDLESS, stop=iter([stop]), n=2)
    assert (last.text, last.finish_reason, last.stop) == (stopped.text, FinishReason.STOP, stop)
    assert engine.generate("abc", max_tokens=5, sampling=ENDLESS, stop="never").finish_reason is FinishReason.LENGTH


def test_what_comes_after_a_stop_string(letters: og.Model) -> None:
    """Where a call makes several steps, the tokens after the stop string are no part of the answer, nor of its usage."""
    engine = driven(letters)
    runner = runner_of(engine)
    whole = engine.submit("abc", max_tokens=60, sampling=ENDLESS)
    turns(engine)
    stop = whole.text[10:14]
    stopped = engine.submit("abc", max_tokens=60, sampling=ENDLESS, stop=stop, logprobs=1)
    turns(engine, 2)
    runner.contended_gil_seconds = -1.0  # as if another thread held the GIL
    turns(engine, 1)
    assert stopped.done
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert letters.vocab.detokenize(stopped.tokens) == stopped.text + stop
    assert stopped.usage.completion_tokens == len(stopped.tokens) == len(stopped.logprobs)
    idle(engine)
    again = engine.submit("abc", max_tokens=60, sampling=ENDLESS)
    turns(engine)
    assert again.tokens == whole.tokens
    engine.close()


def test_logprobs(engine: og.Engine, letters: og.Model) -> None:
    """Each token has the logprob that a softmax over the logits gives, and the pieces have those of their tokens."""
    completion = engine.generate("abc", max_tokens=6, logprobs=2, **GREEDY)
    with og.Context(letters, n_ctx=N_CTX_SEQ, **EXACT) as context:
        batch = og.Batch(64)
        prompt = letters.vocab.tokenize("abc")
        batch.add_sequence([*prompt, *completion.tokens], logits="all")
        context.decode(batch)
        for i, (logprob, top) in enumerate(completion.logprobs):
            row = context.logits(len(prompt) - 1 + i).copy().astype(float)
            expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
            assert logprob == pytest.approx(expected[completion.tokens[i]], abs=1e-4)
            assert [token for token, _ in top] == expected.argsort()[::-1][:2].tolist()
    assert [each for piece in completion for each in piece.logprobs] == completion.logprobs
    assert len(completion.logprobs) == len(completion.tokens)


def test_what_cannot_be(engine: og.Engine) -> None:
    """Bad arguments are refused at the call, before anything is queued."""
    with pytest.raises(og.ContextLengthError) as error:
        engine.submit([7] * N_CTX_SEQ)
    assert (error.value.n_tokens, error.value.n_ctx) == (N_CTX_SEQ, N_CTX_SEQ)
    assert len(engine.generate([7] * (N_CTX_SEQ - 1), sampling=ENDLESS).tokens) == 2
    bad: list[tuple[dict[str, Any], type[Exception], str | None]] = [
        ({"prompt": []}, ValueError, "prompt"),
        ({"prompt": [61]}, ValueError, "prompt"),
        ({"n": 0}, ValueError, "n must"),
        ({"max_tokens": 0}, ValueError, "max_tokens"),
        ({"n_keep": N_CTX_SEQ - 1}, ValueError, "n_keep"),
        ({"stop": ["a", ""]}, ValueError, "stop"),
        ({"sampling": {"temperature": 0}}, TypeError, "sampling"),
        ({"priority": "high"}, TypeError, "priority"),
        ({"logprobs": -1}, ValueError, "logprobs"),
        ({"grammar": og.Grammar.gbnf('root ::= "0"')}, og.GrammarError, None),
    ]
    for arguments, kind, words in bad:
        with pytest.raises(kind, match=words):
            engine.submit(**{"prompt": "abc", **arguments}).result()
    settle(engine)
    idle(engine)
    with pytest.raises(ValueError, match="n_batch"):
        make(engine.model, 8, n_batch=8)


# Threads and event loops ------------------------------------------------------------------------------------------------


def test_many_threads(letters: og.Model, engine: og.Engine) -> None:
    """Sixteen threads at once, and each gets its own text."""
    answers: dict[int, list[int]] = {}

    def one(i: int) -> None:
        answers[i] = [
            token for piece in engine.stream([7 + i, 9], max_tokens=25, sampling=ENDLESS) for token in piece.tokens
        ]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(16):
        assert answers[i] == alone(letters, [7 + i, 9], 25, ENDLESS)[0]


def test_threads_may_change(letters: og.Model) -> None:
    """Other numbers of threads, between steps and while idle, give the same text."""
    with og.Engine(letters, n_seq_max=2, n_ctx=256, n_threads=2, flash_attn_type="disabled") as engine:
        first = engine.generate([5, 6, 7], max_tokens=20, temperature=0).tokens
        engine.set_n_threads(1)
        assert engine.generate([5, 6, 7], max_tokens=20, temperature=0).tokens == first
        assert runner_of(engine).context.n_threads == 1
        running = engine.submit([8, 9], max_tokens=100, temperature=0)
        engine.set_n_threads(2)
        assert len(running.result().tokens) > 0
        with pytest.raises(ValueError, match="n_threads"):
            engine.set_n_threads(0)
    with pytest.raises(og.ClosedError):
        engine.set_n_threads(1)


def test_the_old_name_of_the_draft_model(letters: og.Model) -> None:
    """``draft=`` of the Engine is still taken, with a warning that names ``draft_model=``."""
    with pytest.warns(DeprecationWarning, match="draft_model"), make(letters, draft=letters) as engine:
        assert engine.generate([1, 2], max_tokens=1, sampling=ENDLESS).tokens

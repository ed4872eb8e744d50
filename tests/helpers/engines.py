"""Engines that are driven turn by turn, what a request gives alone, and models that guess or fail."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

import offgrid_llama as og
from helpers.twin import EXACT
from offgrid_llama._capi import lib
from offgrid_llama.engine.loop import Loop
from offgrid_llama.engine.planning.costs import Costs
from offgrid_llama.engine.planning.drafting import Acceptance, Drafting
from offgrid_llama.engine.runner import Runner

N_CTX_SEQ = 256
EOS = 2
GREEDY: dict[str, Any] = {"temperature": 0}
ENDLESS = og.SamplingParams(seed=3, logit_bias={EOS: -math.inf})
SURE = replace(ENDLESS, temperature=0)
UNENDING: dict[str, Any] = {"max_tokens": 10**6, "n_keep": 0, "sampling": ENDLESS}
"""Options of a request that runs until it is cancelled, however quick the machine is."""


def make(model: og.Model, n_seq_max: int = 4, *, kind: type[og.Engine] = og.Engine, **options: Any) -> og.Engine:
    return kind(model, **{**EXACT, "n_seq_max": n_seq_max, "n_ctx": n_seq_max * N_CTX_SEQ, "n_batch": 64, **options})


def loop_of(engine: og.Engine) -> Loop:
    return engine._loop


def runner_of(engine: og.Engine) -> Runner:
    runner = loop_of(engine).runner
    assert isinstance(runner, Runner)
    return runner


class Driven(og.Engine):
    """An engine whose thread is never started: ``turns`` makes its steps."""

    _starts = False


def driven(model: og.Model, n_seq_max: int = 4, *, steps_in_a_call: int | None = None, **options: Any) -> og.Engine:
    """Return an engine that is driven turn by turn, and goes by no clock.

    Args:
        model: the model.
        n_seq_max: its sequences.
        steps_in_a_call: the most steps of a turn while nothing iterates; None is the engine's own.
        options: of Engine.
    """
    engine = make(model, n_seq_max, kind=Driven, **options)
    if steps_in_a_call is not None:
        loop_of(engine).steps_without_reader = steps_in_a_call
    runner_of(engine).contended_gil_seconds = math.inf
    return engine


def turns(engine: og.Engine, n: int = 1_000_000) -> int:
    """Make ``n`` steps, or as many as there are; return how many."""
    loop = loop_of(engine)
    for done in range(n):
        if not loop.has_work:
            return done
        loop.turn()
    return n


def alone(model: og.Model, prompt: list[int], max_tokens: int, params: og.SamplingParams) -> tuple[list[int], str]:
    """Return the tokens that a loop over the nouns gives, and why they end."""
    tokens: list[int] = []
    with og.Context(model, n_ctx=N_CTX_SEQ, n_batch=N_CTX_SEQ, **EXACT) as context:
        sampler = og.FastSampler(model.vocab, params)
        batch = og.Batch(N_CTX_SEQ)
        batch.add_sequence(prompt)
        while True:
            context.decode(batch)
            token = sampler.sample(context, -1)
            if model.vocab.is_eog(token):
                return tokens, "stop"
            tokens.append(token)
            if len(tokens) == max_tokens or len(prompt) + len(tokens) > N_CTX_SEQ:
                return tokens, "length"
            batch.clear()
            batch.add(token, len(prompt) + len(tokens) - 1, [0], logits=True)


def logprobs_of(model: og.Model, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Return the logprobs of all tokens behind each token of a text, float64[n, n_vocab]."""
    with og.Context(model, n_ctx=N_CTX_SEQ, n_batch=N_CTX_SEQ, **EXACT) as context:
        batch = og.Batch(N_CTX_SEQ)
        batch.add_sequence(tokens, logits="all")
        context.decode(batch)
        logits = np.stack([context.logits(row).copy() for row in range(len(tokens))]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logprobs: npt.NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logprobs


def on_the_edge(model: og.Model, prompt: list[int], params: og.SamplingParams, tokens: list[int], other: int) -> bool:
    """Return whether ``other`` in place of the last token is but rounding: noise of 1e-5 in its logits gives both."""
    rng = np.random.default_rng(1)
    sampler = og.FastSampler(model.vocab, params)
    with og.Context(model, n_ctx=N_CTX_SEQ, n_batch=N_CTX_SEQ, **EXACT) as context:
        batch = og.Batch(N_CTX_SEQ)
        batch.add_sequence(prompt)
        context.decode(batch)
        for i in range(len(tokens) - 1):
            assert sampler.sample(context, -1) == tokens[i]
            batch.clear()
            batch.add(tokens[i], len(prompt) + i, [0], logits=True)
            context.decode(batch)
        row = context.logits(-1)
        noisy = [(row + 1e-5 * rng.standard_normal(row.shape)).astype(np.float32) for _ in range(100)]
    return {sampler.clone().choose(each) for each in noisy} == {tokens[-1], other}


def idle(engine: og.Engine) -> None:
    """Check that nothing is left behind: no request, and memory holds what the slots say."""
    stats = engine.stats()
    assert (stats.n_waiting, stats.n_running) == (0, 0)
    slots, lengths = loop_of(engine).scheduler.slots, runner_of(engine).lengths()
    assert stats.n_free + stats.n_cached == len(lengths)
    assert [slots.n_computed(seq) for seq in range(len(lengths))] == lengths


def settle(engine: og.Engine) -> None:
    """Wait until the engine has ended the turn in which it has given out the last answer."""
    engine.generate([7], max_tokens=1)
    deadline = time.monotonic() + 30
    while engine.stats().n_running:
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Prophet:
    """Guesses what will come, with errors now and then."""

    said: ClassVar[dict[tuple[int, ...], list[int]]] = {}
    follows = True
    predicted = None

    def __init__(self, tokens: list[int], *, guided: bool = False, predicted: Sequence[int] = ()) -> None:
        del guided, predicted
        self.future = self.said.get(tuple(tokens), [])
        self.rng = random.Random(len(self.future))
        self.at = 0

    def follow(self, tokens: list[int], n_forced: int = 0) -> None:
        self.at += len(tokens)

    def guess(self, _costs: object, _rows: int, _guessed: int, room: int) -> list[int]:
        guess = self.future[self.at : self.at + self.rng.randint(0, max(room, 0))]
        if guess and self.rng.random() < 0.5:
            guess[self.rng.randrange(len(guess))] = 60
        return guess


class Always(Drafting):
    """Lets the draft model guess ``n`` tokens in each step."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def length(self, requests: Sequence[Acceptance], costs: Costs, n_generating: int, room: int) -> int:
        return min(self.n, room // max(len(requests), 1))


def always_draft(engine: og.Engine, n: int) -> None:
    """Let the draft model guess ``n`` tokens in each step."""
    estimates = loop_of(engine).scheduler.estimates
    assert estimates.drafting is not None
    estimates.drafting = Always(n)


class Faulty:
    """Lets decodes fail that have a certain token in a prompt, after some of them was computed."""

    def __init__(self, engine: og.Engine, monkeypatch: pytest.MonkeyPatch, token: int, error: Exception) -> None:
        context, self.failures = runner_of(engine).context, 0
        decode = context.decode_with

        def fail(batch: og.Batch, function: Any) -> None:
            tokens = [batch.c.token[row] for row in range(len(batch))]
            if token not in tokens:
                return decode(batch, function)
            self.failures += 1
            some = og.Batch(len(batch))
            for row in range(tokens.index(token)):
                some.add(tokens[row], batch.c.pos[row], [batch.c.seq_id[row][0]])
            if len(some):
                decode(some, lib.llama_decode)
            raise error

        monkeypatch.setattr(context, "decode_with", fail)

"""The rows of prompts: each token once, scored once, within the rows with logits that a step has."""

from __future__ import annotations

import random

import pytest

from helpers.estimates import MadeUpPace
from offgrid_llama.engine.planning.estimates import Estimates
from offgrid_llama.engine.planning.limits import Limits
from offgrid_llama.engine.planning.plan import Plan
from offgrid_llama.engine.planning.request import Request
from offgrid_llama.engine.planning.scheduler import Scheduler
from offgrid_llama.engine.planning.slots import Slots

N_CTX_SEQ = 96


class Tokens:
    """An outcome: one token, which ends no text."""

    n_forced = n_verified = 0

    def __init__(self) -> None:
        self.tokens = [7]


def scheduler_of(n_seq: int, n_outputs: int, rng: random.Random, n_batch: int = 64) -> Scheduler[Request]:
    limits = Limits(n_seq, n_batch, N_CTX_SEQ, n_outputs=n_outputs)
    return Scheduler(limits, Slots(limits), Estimates(MadeUpPace(lambda *_: rng.randint(1, n_batch))))


def scored_by(plan: Plan[Request]) -> list[tuple[Request, int]]:
    """Return the tokens of prompts, by their indexes, that a plan scores, after a look at its rows."""
    found = []
    for rows in plan.rows:
        assert set(rows.scored) <= set(range(len(rows.tokens)))
        assert not (rows.sample and len(rows.tokens) - 1 in rows.scored) or rows.request.scores_next
        assert not rows.scored or rows.request.scored is not None
        found += [(rows.request, rows.pos + i + 1) for i in rows.scored]
    return found


@pytest.mark.parametrize("seed", range(40))
def test_each_token_is_scored_once(seed: int) -> None:
    """Of each prompt that asks for it, in order, also where steps fail; and no step has too many rows with logits."""
    rng = random.Random(seed)
    n_seq = rng.randint(1, 5)
    n_outputs = rng.randint(n_seq, n_seq + 20)
    scheduler = scheduler_of(n_seq, n_outputs, rng)
    requests: list[Request] = []
    asked, done, memory = [], [], [0] * n_seq
    for i in range(12):
        prompt = [rng.randrange(3) for _ in range(rng.randint(1, 90))]
        begun = rng.choice(requests).prompt if requests and rng.random() < 0.5 else ()
        prompt = [*begun[:50], *prompt][:90]
        scored, scores_next = rng.choice([None, 1, rng.randint(1, len(prompt))]), rng.random() < 0.5
        requests.append(Request(prompt, 4, scored=scored, scores_next=scores_next and scored is not None))
        asked.append((requests[-1], len(prompt), scored))
        scheduler.add(requests[-1])
        for _ in range(rng.randint(0, 4) if i < 11 else 10_000):
            plan = scheduler.plan()
            if plan is None:
                break
            told = scored_by(plan)
            with_logits = [{*rows.scored, *([len(rows.tokens) - 1] if rows.sample else [])} for rows in plan.rows]
            assert sum(map(len, with_logits)) <= n_outputs
            assert sum(len(rows.tokens) for rows in plan.rows) <= 64
            for request in plan.admitted:
                assert request.scored is None or request.n_cached < request.scored
            if rng.random() < 0.1:
                for rows in plan.rows:
                    memory[rows.seq] = rows.pos + rng.randint(0, len(rows.tokens))
                scheduler.restore(memory)
                continue
            done += told
            scheduler.apply([Tokens() if rows.sample else None for rows in plan.rows])
            memory = [scheduler.slots.n_computed(seq) for seq in range(n_seq)]
    assert not scheduler.unfinished()
    for request, n, scored in asked:
        end = n + request.scores_next
        assert [at for other, at in done if other is request] == list(range(end if scored is None else scored, end))
        assert len(request.tokens) == 4


def test_all_of_a_prompt_that_asks_is_scored() -> None:
    """To its end, with one row with logits or many; the first token has nothing before it."""
    for n_outputs in (1, 2, 30, 200):
        scheduler = scheduler_of(1, n_outputs, random.Random(1))
        request = Request(list(range(80)), 1, scored=1)
        scheduler.add(request)
        found = []
        while (plan := scheduler.plan()) is not None:
            found += scored_by(plan)
            scheduler.apply([Tokens() if rows.sample else None for rows in plan.rows])
        assert found == [(request, at) for at in range(1, 80)]


def test_others_use_the_room_that_is_left() -> None:
    """A prompt that logits limit takes its share of these, and the others the rest of the step."""
    limits = Limits(3, 64, N_CTX_SEQ, n_outputs=8)
    scheduler: Scheduler[Request] = Scheduler(limits, Slots(limits), Estimates(MadeUpPace(lambda *_: 64)))
    for i, scored in enumerate((1, None, None)):
        scheduler.add(Request([i, *range(89)], 1, scored=scored))
    plan = scheduler.plan()
    assert plan is not None
    assert sorted(len(rows.tokens) for rows in plan.rows) == [5, 29, 30]

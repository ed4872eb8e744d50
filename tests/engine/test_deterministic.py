"""deterministic=True: the same numbers, to the last bit, after and beside any other requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from offgrid_llama.engine.planning.estimates import Estimates
from offgrid_llama.engine.planning.limits import Limits, Trim
from offgrid_llama.engine.planning.request import Request
from offgrid_llama.engine.planning.scheduler import Scheduler
from offgrid_llama.engine.planning.slots import Slots

STORY = "Once upon a time there was a miller who had three sons, his mill, a donkey and a cat. " * 14
"""Some 300 tokens: two whole pieces, and a rest."""
OPTIONS: dict[str, Any] = {"max_tokens": 24, "temperature": 0.8, "seed": 5, "logprobs": 2}


@pytest.fixture
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    with og.Engine(smollm2, n_ctx=6 * 1024, n_seq_max=6, deterministic=True) as engine:
        yield engine


def told(completion: og.Completion) -> tuple[Any, ...]:
    """Return what must not differ by a bit: tokens and logprobs."""
    done = completion.result()
    return tuple(done.tokens), tuple(map(str, done.logprobs))


def test_cold_cached_alone_and_in_a_crowd(engine: og.Engine) -> None:
    """The same request gives the same logprobs at first, from the prefix cache, and among other requests."""
    first = engine.submit(STORY, **OPTIONS)
    alone = told(first)
    assert first.usage.cached_tokens == 0
    again = engine.submit(STORY, **OPTIONS)
    assert told(again) == alone
    assert again.usage.cached_tokens == 256
    others = [engine.submit(f"{n} {STORY[: 300 * n]}", max_tokens=40, seed=n) for n in range(1, 5)]
    crowd = [engine.submit(STORY, **OPTIONS) for _ in range(3)]
    assert [told(each) for each in crowd] == [alone] * 3
    longer = [engine.submit(STORY[:n] + " The end.", **OPTIONS) for n in (600, 900)]
    for each in others:
        each.result()
    assert [told(each) for each in longer] == [
        told(engine.submit(STORY[:n] + " The end.", **OPTIONS)) for n in (600, 900)
    ]


def test_in_another_engine(engine: og.Engine, smollm2_path: Path) -> None:
    """An engine with other sequences, and another copy of the model, gives the same."""
    with og.Engine(smollm2_path, n_ctx=1024, n_seq_max=1, deterministic=True) as other:
        assert told(other.submit(STORY, **OPTIONS)) == told(engine.submit(STORY, **OPTIONS))


def test_conversations(engine: og.Engine) -> None:
    """A turn that goes on from a cached answer gives what it gives where all of it is computed anew."""
    asked = [{"role": "user", "content": STORY}]
    first = engine.chat(asked, max_tokens=90, temperature=0).result()
    asked += [first.message(), {"role": "user", "content": "Go on."}]
    warm = told(engine.chat(asked, **OPTIONS).completion)
    engine.generate("x " * 900, max_tokens=1)
    assert told(engine.chat(asked, cache_salt="new", **OPTIONS).completion) == warm


@pytest.mark.parametrize("given", [{"kv_unified": True}, {"cache_dir": "."}])
def test_what_does_not_go_with_it(smollm2: og.Model, given: dict[str, Any]) -> None:
    """Arguments with which requests cannot be computed alone are refused by name."""
    with pytest.raises(ValueError, match=f"^{next(iter(given))} does not go with deterministic=True"):
        og.Engine(smollm2, deterministic=True, **given)
    with pytest.raises(ValueError, match=r"^draft_model does not go with"):
        og.Engine(smollm2, deterministic=True, draft_model=smollm2)


def test_plans_of_one_request() -> None:
    """Each plan has one request: a token, or a piece of its prompt that ends where pieces end; requests take turns."""
    limits = Limits(3, n_batch=64, n_ctx_seq=200, piece=10)
    scheduler: Scheduler[Request] = Scheduler(limits, Slots(limits), Estimates.of(limits))
    requests = [Request([n] * 25, 2) for n in range(1, 4)]
    for request in requests:
        scheduler.add(request)
    seen: list[tuple[int, int, int]] = []
    while (plan := scheduler.plan()) is not None:
        [rows] = plan.rows
        seen.append((requests.index(rows.request), rows.pos, len(rows.tokens)))
        scheduler.apply([Outcome() if rows.sample else None])
    each = [(0, 10), (10, 10), (20, 5), (25, 1)]
    assert seen == [(n, pos, length) for pos, length in each for n in range(3)]


def test_prefixes_end_with_whole_pieces() -> None:
    """Only whole pieces of a prompt are a prefix for others, never what was generated, and none of memory without parts."""
    for trim, n_cached in ((Trim.ANY, 20), (Trim.NOTHING, 0)):
        slots = Slots(Limits(2, n_batch=64, n_ctx_seq=200, piece=10, trim=trim))
        first = slots.take([1] * 25)
        slots.kept(first.seq, [1] * 45, 45, 45)  # type: ignore[union-attr]
        slots.release(first.seq, [1] * 20)  # type: ignore[union-attr]
        taken = slots.take([1] * 60)
        assert taken.n_cached == n_cached  # type: ignore[union-attr]


class Outcome:
    """One sampled token."""

    tokens = (9,)
    n_forced = n_verified = 0

"""Pace: how much of the prompts a step may have."""

from __future__ import annotations

import pytest

from offgrid_llama.engine.planning.pace import (
    FIRST_PREFILL_TOKENS,
    MAX_STEPS_WITH_PREFILL,
    PREFILL_MAX_SLOWDOWN,
    SHORT_PREFILL_SECONDS,
    Pace,
)
from offgrid_llama.engine.planning.prompt_rows import callers_waiting
from offgrid_llama.engine.planning.request import Request

LONG = 10_000


def learned(token: float = 0.001, **alone: float) -> Pace:
    """Return a Pace that knows what steps take: ``_3=0.01`` is 10 ms for three that generate."""
    pace = Pace(512)
    for name, seconds in alone.items():
        pace.observe(int(name[1:]), 0, seconds)
        for _ in range(30):
            pace.observe(int(name[1:]), 100, seconds + 100 * token)
        pace.observe(int(name[1:]), 0, seconds)
    return pace


def test_nothing_to_hold_up() -> None:
    """Where none generates a step is as full as it can be."""
    assert Pace(512).prompt_budget(0, 3, LONG) == 512


def test_what_is_not_known_is_measured() -> None:
    """First a step without prompts, then a few tokens, then what they have shown; and now and then again."""
    pace = Pace(512)
    assert pace.prompt_budget(2, 1, LONG) == 0
    pace.observe(2, 0, 0.01)
    assert pace.prompt_budget(2, 1, LONG) == FIRST_PREFILL_TOKENS
    pace.observe(2, FIRST_PREFILL_TOKENS, 0.01 + FIRST_PREFILL_TOKENS * 0.0005)
    assert pace.prompt_budget(2, 1, LONG) == pytest.approx((PREFILL_MAX_SLOWDOWN - 1) * 0.01 / 0.0005, abs=1)
    for _ in range(MAX_STEPS_WITH_PREFILL):
        pace.observe(2, 20, 0.02)
    assert pace.prompt_budget(2, 1, LONG) == 0
    pace.observe(2, 0, 0.01)
    assert pace.prompt_budget(2, 1, LONG) > 0


def test_steps_stay_under_the_slowdown() -> None:
    """With at most as many prompts as generating requests, a step takes at most the allowed slowdown."""
    pace = learned(_4=0.01)
    for n_prompts in (1, 2, 4):
        seconds = 0.01 + 0.001 * pace.prompt_budget(4, n_prompts / 4, LONG)
        assert PREFILL_MAX_SLOWDOWN - 0.2 <= seconds / 0.01 <= PREFILL_MAX_SLOWDOWN


def test_where_more_wait_than_generate() -> None:
    """Each that waits counts as much as one that generates: seven wait no longer for the sake of one."""
    pace = learned(_1=0.01)
    assert pace.prompt_budget(1, 7, LONG) == pytest.approx(7 * pace.prompt_budget(1, 1, LONG), rel=0.1)


@pytest.mark.parametrize(
    ("generating", "prompts", "waiting"),
    [("a", "aaaaaaa", 7), ("aaaa", "aa", 0.5), ("b", "aaaaaaa", 1), ("ab", "aaaa", 0.5), ("b", "aaacc", 2)],
)
def test_who_waits(generating: str, prompts: str, waiting: float) -> None:
    """However many prompts one tenant sends, it is one caller to another."""
    some, others = ([Request([1], 1, tenant=tenant) for tenant in tenants] for tenants in (generating, prompts))
    assert callers_waiting(some, others) == waiting


def test_prompts_that_soon_are_done() -> None:
    """They are not cut: one short wait for those that generate, longer where more wait for it than have to."""
    pace = learned(_4=0.01)
    short = int(SHORT_PREFILL_SECONDS / 0.001) - 1
    assert short > 3 * pace.prompt_budget(4, 1, LONG)
    assert pace.prompt_budget(4, 1, short) == short
    assert pace.prompt_budget(4, 1, short + 2) == pace.prompt_budget(4, 1, LONG)
    assert pace.prompt_budget(4, 2, 2 * short) == 2 * short
    assert pace.prompt_budget(3, 1, short) == short  # whatever three take


def test_numbers_that_were_not_seen() -> None:
    """They go by one that is near; where none is, a step without prompts is measured first."""
    pace = learned(_1=0.01, _8=0.02)
    assert pace.prompt_budget(7, 1, LONG) == pace.prompt_budget(8, 1, LONG)
    assert pace.prompt_budget(2, 1, LONG) == 0
    pace.observe(2, 0, 0.012)
    assert pace.prompt_budget(2, 1, LONG) > 0


def test_many_begin_behind_one() -> None:
    """The time of one request alone is not that of sixteen: prompts of those that come later do not wait for seconds."""
    pace = learned(_1=0.006)
    left, seconds = 300, 0.0
    while left > 0:
        n = pace.prompt_budget(10, 5, LONG)
        taken = 0.045 + 0.002 * n  # as seen with ten
        pace.observe(10, n, taken)
        left, seconds = left - n, seconds + taken
    assert seconds < 1.5

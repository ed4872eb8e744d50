"""Drafting: as much is drafted as pays by how often it was right."""

from __future__ import annotations

import random
import statistics

from helpers.costs import DEAR, FREE
from offgrid_llama.engine.planning.costs import MAX_GUESS_TOKENS, Costs
from offgrid_llama.engine.planning.drafting import DRAFT_PAUSE_STEPS, Acceptance, Drafting


def lengths(drafting: Drafting, costs: Costs, chance: float, seconds: float, n_steps: int) -> list[int]:
    """Return the length of the draft in each of ``n_steps``, for a request guessed right with ``chance``."""
    rng = random.Random(3)
    request = Acceptance(drafting.chance)
    found = []
    for _ in range(n_steps):
        n = drafting.length([request], costs, 1, MAX_GUESS_TOKENS)
        found.append(n)
        if n:
            drafting.observe(seconds)
            right = next((i for i in range(n) if rng.random() > chance), n)
            request.learn(n, right)
    return found


def test_a_draft_where_it_pays() -> None:
    """The more is right and the less it costs, the more is drafted."""
    good = lengths(Drafting(), FREE, 0.95, 0.05, 300)
    assert statistics.median(good[100:]) >= 8
    fair = lengths(Drafting(), FREE, 0.6, 0.1, 300)
    assert 1 <= statistics.median(fair[100:]) <= 4


def test_a_draft_that_does_not_pay_is_seldom_asked() -> None:
    """After it has not paid it is asked again after ever longer pauses; one that never can, is not."""
    wrong = lengths(Drafting(), FREE, 0.05, 0.3, 4000)
    tried = [i for i, n in enumerate(wrong) if n]
    assert len(tried) < 60
    assert tried[-1] - tried[-2] >= 4 * DRAFT_PAUSE_STEPS
    slow = lengths(Drafting(), FREE, 1.0, 1.0, 1000)
    assert sum(slow[10:]) == 0
    dear = lengths(Drafting(), DEAR, 1.0, 0.1, 1000)
    assert sum(dear[10:]) == 0


def test_drafts_share_the_room() -> None:
    """Requests get as many each; none where there is no room, or nothing to compare with yet."""
    drafting = Drafting()
    some = [Acceptance(0.9) for _ in range(4)]
    assert drafting.length(some, Costs(), 4, 16) == 0
    assert drafting.length(some, FREE, 4, 3) == 0
    assert drafting.length([], FREE, 4, 16) == 0
    assert 0 < drafting.length(some, FREE, 4, 8) <= 2

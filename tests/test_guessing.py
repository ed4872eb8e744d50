"""Guessing: what is guessed is what followed before, as far as that pays by the costs seen and by how often it was right."""

from __future__ import annotations

import random
import statistics

import pytest

from offgrid_llama.engine.guessing import MOST, PAUSE, Acceptance, Costs, Drafting, Lookup

FREE, DEAR = Costs(), Costs()
for n_generating in range(1, 9):
    for n_guessed in range(20):
        FREE.observe(n_generating, n_guessed, 1.0)
        DEAR.observe(n_generating, n_guessed, 1.0 + n_guessed)


def test_what_followed_before() -> None:
    """After three tokens that were there before comes what came then, more of it the longer that was right."""
    text = list(range(100, 140))
    lookup = Lookup([*text, 1, 2])
    assert lookup.guess(FREE, 1, 0, MOST) == []
    lookup.follow(text[:2])
    assert lookup.guess(FREE, 1, 0, MOST) == []
    lookup.follow(text[2:3])
    first = lookup.guess(FREE, 1, 0, MOST)
    assert first == text[3 : 3 + len(first)]
    lookup.follow(text[3:13])
    assert lookup.guess(FREE, 1, 0, MOST) == text[13 : 13 + MOST]
    assert lookup.guess(FREE, 1, 0, 5) == text[13:18]
    assert lookup.guess(FREE, 1, 0, 0) == []
    lookup.follow([9])  # not what was expected
    assert lookup.guess(FREE, 1, 0, MOST) == []


def test_a_grammar_has_a_say() -> None:
    """What must come tells nothing of guesses and is worth nothing: steps that are saved count, and how sure they are."""
    text = list(range(100, 140))
    costs = Costs()
    for _ in range(30):
        for n_guessed in range(20):
            costs.observe(1, n_guessed, 6.0 + 2.5 * n_guessed)
    every, rare = [True] * MOST, [i % 8 == 0 for i in range(MOST)]
    unsure, sure = Lookup([*text, *text[:3]], guided=True), Lookup([*text, *text[:3]], guided=True)
    unsure.follow(text[3:11], n_forced=8)
    sure.follow(text[3:11])
    for lookup in (unsure, sure):
        assert lookup.guess(costs, 1, 0, MOST) == text[11 : 11 + MOST]
    assert unsure.worth(every) == 0
    assert unsure.worth(rare) == 0
    assert sure.worth(every) >= 8
    assert sure.worth([True, *[False] * (MOST - 1)]) == 0  # a wrong guess would cost more than the step that it saves
    n = sure.worth(rare)
    sure.follow([*text[11 : 11 + n], text[11 + n]])
    assert sure.guess(costs, 1, 0, 3) == text[12 + n : 15 + n]
    sure.follow([9, 10], n_forced=1)
    assert sure.guess(costs, 1, 0, MOST) == []


def test_a_guess_has_its_price() -> None:
    """Nothing is guessed where a row more costs as much as a step."""
    text = list(range(100, 140))
    lookup = Lookup([*text, *text[:20]])
    lookup.follow(text[20:24])
    assert lookup.guess(FREE, 1, 0, MOST)
    assert lookup.guess(DEAR, 1, 0, MOST) == []


def test_a_text_that_never_repeats_itself_right() -> None:
    """Where guesses turn out wrong there are no more of them; that is seen without using them, and unseen again."""
    rng = random.Random(2)
    lookup = Lookup([])
    guessed = 0
    for _ in range(300):  # the same three tokens, and then another one each time
        lookup.follow([1, 2, 3])
        guessed += len(lookup.guess(Costs(), 1, 0, MOST))
        lookup.follow([rng.randrange(10, 1000)])
    assert guessed < 20
    for _ in range(60):
        lookup.follow([1, 2, 3])
        some = lookup.guess(Costs(), 1, 0, MOST)
        lookup.follow([4, 5, 6, 7, 8, 9])
    assert some[:3] == [4, 5, 6]


def test_costs() -> None:
    """What was seen counts, also for what is near; where nothing was seen, or long ago, it is taken to be worth a try."""
    costs = Costs()
    assert costs.slowdown(1, 4) == 3
    for _ in range(30):
        costs.observe(1, 0, 1.0)
        costs.observe(1, 4, 9.0)
        costs.observe(2, 0, 2.0)
    assert costs.slowdown(1, 4) == pytest.approx(9)
    assert costs.slowdown(1, 3) == pytest.approx(7)
    assert costs.slowdown(2, 4) == pytest.approx(5)  # as much more as with one
    costs.observe(1, 3, 1.5)
    assert costs.slowdown(1, 3) == 1.5
    assert costs.slowdown(1, 2) == pytest.approx(4 / 3)
    for _ in range(600):
        costs.observe(1, 0, 1.0)
    assert costs.slowdown(1, 4) == 3


def test_what_a_guess_may_cost() -> None:
    """Among several it is computed apart: as long as a step for as many rows takes, where those were seen."""
    costs, shared = Costs(), Costs(apart=False)
    for each in (costs, shared):
        assert each.slowdown(8, 4) == 1.25
        for n in (2, 8):
            each.observe(n, 0, 0.01 + 0.002 * n)
    assert costs.slowdown(8, 4) == pytest.approx(1 + 0.018 / 0.026)
    assert costs.slowdown(7, 8) == pytest.approx(2)  # by what eight take
    assert costs.slowdown(8, 32) == pytest.approx(3)  # of so many nothing is known
    assert costs.slowdown(1, 4) == 3  # one has nobody beside it
    assert shared.slowdown(8, 4) == 1.25


def test_a_guess_that_many_share() -> None:
    """What one guess has cost among many, another one pays for; where steps are slow anyway it costs little."""
    costs = Costs()
    for n in (1, 16):
        costs.observe(n, 0, 1.0 + 0.1 * n)
        costs.observe(n, 3, 2.0 + 0.1 * n)
    text = list(range(100, 140))
    lookup = Lookup([*text, *text[:3]])
    lookup.follow(text[3:13])
    assert lookup.guess(costs, 1, 0, 3)
    assert not lookup.guess(costs, 16, 0, 3)


def lengths(drafting: Drafting, costs: Costs, chance: float, seconds: float, n_steps: int) -> list[int]:
    """Return how much is drafted in so many steps, of one request whose drafts are right so often."""
    rng = random.Random(3)
    request = Acceptance(drafting.chance)
    found = []
    for _ in range(n_steps):
        n = drafting.length([request], costs, 1, MOST)
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
    assert tried[-1] - tried[-2] >= 4 * PAUSE
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

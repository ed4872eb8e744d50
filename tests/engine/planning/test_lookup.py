"""Guessing: what is guessed is what followed before, as far as that pays by the costs seen and by how often it was right."""

from __future__ import annotations

import random

from helpers.costs import DEAR, FREE
from offgrid_llama.engine.planning.costs import MAX_GUESS_TOKENS, Costs
from offgrid_llama.engine.planning.lookup import Lookup


def test_what_followed_before() -> None:
    """After three tokens that were there before comes what came then, more of it the longer that was right."""
    text = list(range(100, 140))
    lookup = Lookup([*text, 1, 2])
    assert lookup.guess(FREE, 1, 0, MAX_GUESS_TOKENS) == []
    lookup.follow(text[:2])
    assert lookup.guess(FREE, 1, 0, MAX_GUESS_TOKENS) == []
    lookup.follow(text[2:3])
    first = lookup.guess(FREE, 1, 0, MAX_GUESS_TOKENS)
    assert first == text[3 : 3 + len(first)]
    lookup.follow(text[3:13])
    assert lookup.guess(FREE, 1, 0, MAX_GUESS_TOKENS) == text[13 : 13 + MAX_GUESS_TOKENS]
    assert lookup.guess(FREE, 1, 0, 5) == text[13:18]
    assert lookup.guess(FREE, 1, 0, 0) == []
    lookup.follow([9])  # not what was expected
    assert lookup.guess(FREE, 1, 0, MAX_GUESS_TOKENS) == []


def test_a_grammar_has_a_say() -> None:
    """Tokens that must come tell nothing of guesses and are worth nothing: saved steps count, and how sure they are."""
    text = list(range(100, 140))
    costs = Costs()
    for _ in range(30):
        for n_guessed in range(20):
            costs.observe(1, n_guessed, 6.0 + 2.5 * n_guessed)
    every, rare = [True] * MAX_GUESS_TOKENS, [i % 8 == 0 for i in range(MAX_GUESS_TOKENS)]
    unsure, sure = Lookup([*text, *text[:3]], guided=True), Lookup([*text, *text[:3]], guided=True)
    unsure.follow(text[3:11], n_forced=8)
    sure.follow(text[3:11])
    for lookup in (unsure, sure):
        assert lookup.guess(costs, 1, 0, MAX_GUESS_TOKENS) == text[11 : 11 + MAX_GUESS_TOKENS]
    assert unsure.worth(every) == 0
    assert unsure.worth(rare) == 0
    assert sure.worth(every) >= 8
    # A wrong guess would cost more than the step that it saves.
    assert sure.worth([True, *[False] * (MAX_GUESS_TOKENS - 1)]) == 0
    n = sure.worth(rare)
    sure.follow([*text[11 : 11 + n], text[11 + n]])
    assert sure.guess(costs, 1, 0, 3) == text[12 + n : 15 + n]
    sure.follow([9, 10], n_forced=1)
    assert sure.guess(costs, 1, 0, MAX_GUESS_TOKENS) == []


def test_a_guess_has_its_price() -> None:
    """Nothing is guessed where a row more costs as much as a step."""
    text = list(range(100, 140))
    lookup = Lookup([*text, *text[:20]])
    lookup.follow(text[20:24])
    assert lookup.guess(FREE, 1, 0, MAX_GUESS_TOKENS)
    assert lookup.guess(DEAR, 1, 0, MAX_GUESS_TOKENS) == []


def test_a_text_that_never_repeats_itself_right() -> None:
    """Where guesses turn out wrong there are no more of them; that is seen without using them, and unseen again."""
    rng = random.Random(2)
    lookup = Lookup([])
    guessed = 0
    for _ in range(300):  # the same three tokens, and then another one each time
        lookup.follow([1, 2, 3])
        guessed += len(lookup.guess(Costs(), 1, 0, MAX_GUESS_TOKENS))
        lookup.follow([rng.randrange(10, 1000)])
    assert guessed < 20
    for _ in range(60):
        lookup.follow([1, 2, 3])
        some = lookup.guess(Costs(), 1, 0, MAX_GUESS_TOKENS)
        lookup.follow([4, 5, 6, 7, 8, 9])
    assert some[:3] == [4, 5, 6]


def test_what_is_predicted_comes_first() -> None:
    """From its beginning on, and after a change from where the text is like it again; never beyond its end."""
    expected = list(range(200, 240))
    lookup = Lookup([200, 201, 202, 9, 9, 9, 9, 200, 201, 202], predicted=expected)
    assert lookup.guess(FREE, 1, 0, 4) == expected[:4]
    lookup.follow(expected[:10])
    assert lookup.guess(FREE, 1, 0, 4) == expected[10:14]
    lookup.follow([7, 8, *expected[12:14]])
    assert lookup.guess(FREE, 1, 0, 4) == []
    lookup.follow(expected[14:15])
    assert lookup.guess(FREE, 1, 0, 1) == expected[15:16]
    lookup.follow(expected[15:38])
    assert lookup.guess(FREE, 1, 0, MAX_GUESS_TOKENS) == expected[38:]
    lookup.follow(expected[38:])
    assert lookup.guess(FREE, 1, 0, MAX_GUESS_TOKENS) == []
    assert lookup.predicted is not None
    assert lookup.predicted.n_accepted == 38


def test_of_several_places_the_next_one() -> None:
    """Where the same tokens are in the prediction several times, the text goes on from the next of them."""
    expected = [1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3, 70]
    lookup = Lookup([5], predicted=expected)
    lookup.follow([1, 2, 3, 50, 9, 1, 2, 3])
    assert lookup.guess(FREE, 1, 0, 1) == [60]
    lookup.follow([8, 1, 2, 3])
    assert lookup.guess(FREE, 1, 0, 1) == [70]


def test_the_prompt_is_looked_up_beside_a_prediction() -> None:
    """Where the text is not like the prediction."""
    lookup = Lookup([*range(100, 120)], predicted=[1, 2, 3, 4])
    lookup.follow([100, 101, 102])
    assert lookup.guess(FREE, 1, 0, 2) == [103, 104]
    assert lookup.predicted is not None
    assert lookup.predicted.n_accepted == 0

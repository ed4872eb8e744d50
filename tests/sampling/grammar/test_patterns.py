"""Patterns: which are held, and the whole texts that have a match."""

from __future__ import annotations

import re
from datetime import date, time
from ipaddress import ip_address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offgrid_llama.sampling.grammar.patterns import find, matches, matching, may_match, pattern_problem, slashed
from offgrid_llama.sampling.grammar.text_formats import FORMAT_PATTERNS

atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "[]a]", "\\.", "\\$", "(a|b)", "(?:ab)", "a{2}", "b?", "\\d"])
alternatives = st.tuples(
    st.sampled_from(["", "^"]), st.lists(atoms, max_size=3).map("".join), st.sampled_from(["", "$"])
)
patterns = st.lists(alternatives.map("".join), min_size=1, max_size=3).map("|".join)
texts = st.text("ab1.$]\n", max_size=5)


@given(patterns, texts)
def test_whole_texts(pattern: str, text: str) -> None:
    """A text has a match of a pattern in it where it matches the other pattern as a whole."""
    whole = matching(pattern)
    assert whole is not None
    ends = pattern.replace("$", "\\Z").replace("\\\\Z", "\\$")  # Python's $ is before a last new line, too
    assert (re.fullmatch(whole, text) is not None) == (re.search(ends, text) is not None)


@given(patterns, texts)
def test_matches(pattern: str, text: str) -> None:
    """Llguidance finds a match where Python finds one."""
    ends = pattern.replace("$", "\\Z").replace("\\\\Z", "\\$")
    assert matches(pattern, text) == (re.search(ends, text) is not None)


def test_patterns_that_cannot_be_written_as_whole_texts() -> None:
    """Anchors within groups, and flags in the middle, have no such pattern; flags for all of it have."""
    for pattern in ("(^a|b)", "a(b$)", "a(?i)b", "a^b", "(a"):
        assert matching(pattern) is None
    assert matching("(?i)^ab$") == "(?i:ab)"


def test_problems() -> None:
    """A pattern that cannot be held says why."""
    assert pattern_problem("^[0-9]{4}$") == ""
    assert pattern_problem("(?!a)b").startswith("look-around is not supported")
    assert "unclosed" in pattern_problem("(a")
    assert "str, not int" in pattern_problem(3)
    assert "the limit is 4,096" in pattern_problem("a" * 5000)


def test_time_does_not_explode() -> None:
    """A pattern that takes Python's re exponential time is found at once."""
    assert not matches("^(a+)+$", "a" * 4000 + "!")


def test_patterns_that_are_given_up() -> None:
    """A pattern that would need too many states is told from one that a text does not match."""
    given_up = ".{1000}.*(a.{1000}|b.{999}|c.{998})"
    assert find(given_up, "abc" * 900) is None
    assert find("^b", "abc") is False
    assert find("b", "abc") is True
    assert not matches(given_up, "abc" * 900)


def test_expressions_that_nothing_matches() -> None:
    """An expression that no text matches is told from one that some text does."""
    assert may_match("/[a-z]+/ & /(?s:.{3})/")
    assert may_match("/a?/ & ~/a/")
    assert not may_match("/[a-z]/ & ~/[a-z]/")
    assert not may_match("/[0-9]/ & /[a-z]+/")


def test_between_slashes() -> None:
    """Slashes and new lines are escaped, once."""
    assert slashed("a/b\\/c\nd") == "a\\/b\\/c\\nd"


@pytest.mark.parametrize("form", FORMAT_PATTERNS)
@given(data=st.data())
def test_formats(form: str, data: st.DataObject) -> None:
    """Every text of a format's pattern has the format, where Python can read it."""
    text = data.draw(st.from_regex(re.compile(FORMAT_PATTERNS[form], re.ASCII), fullmatch=True))
    if form == "date":
        date.fromisoformat(text)
    elif form == "time":
        time.fromisoformat(text[:8])
    elif form in ("ipv4", "ipv6"):
        assert ip_address(text).version == int(form[-1])
    elif form == "uuid":
        assert str(UUID(text)) == text.lower()
    else:
        assert {"date-time": "T", "duration": "P", "email": "@", "uri": "://"}.get(form, "") in text

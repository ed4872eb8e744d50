"""chat/tools/scanner.py: a reader waits where a text could go on in more than one way."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from offgrid_llama.chat.tools.scanner import Scanner

_T = TypeVar("_T")
WAITS = object()


def run(reading: Generator[None, None, _T]) -> _T | object:
    """Return what a reading returns, or WAITS where it needs more text."""
    try:
        next(reading)
    except StopIteration as stop:
        found: _T = stop.value
        return found
    return WAITS


def test_a_mark_in_pieces() -> None:
    """Spaces and new lines in it and before it do not matter; another text is left where it is."""
    scan = Scanner()
    for piece, expected in ((" \n<tool", WAITS), ("_call >\n{", True)):
        scan.add(piece)
        assert run(scan.literal("<tool_call>{")) is expected
    assert scan.rest == ""
    scan.add("<tool_cup>")
    assert run(scan.literal("<tool_call>")) is False
    assert scan.rest == "<tool_cup>"


def test_which_text_comes() -> None:
    """The longest of those that come is told, once it is sure."""
    scan = Scanner()
    scan.add("ab")
    assert run(scan.which(["a", "abc", "x"])) is WAITS
    scan.add("c")
    assert run(scan.which(["a", "abc", "x"])) == 1
    assert run(scan.which(["x", "y"])) is None
    assert run(scan.follows("abc", "x")) is True
    assert run(scan.as_far_as("abd")) is None
    assert scan.rest == "c"


def test_words_and_what_comes_before_a_mark() -> None:
    """A word ends where something else begins, or at the end of the text."""
    scan = Scanner()
    scan.add(" get_")
    assert run(scan.word()) is WAITS
    scan.add("weather(")
    assert run(scan.word()) == "get_weather"
    assert run(scan.until(")")) is WAITS
    scan.add("x)")
    assert run(scan.until(")")) == "(x"
    scan.add("end")
    scan.skip(")")
    assert run(scan.word()) is WAITS
    scan.over = True
    assert run(scan.word()) == "end"
    assert run(scan.until(")")) is None
    assert (run(scan.at_least(1)), run(scan.spaces()), run(scan.word())) == (None, None, "")


def test_what_is_read_is_forgotten() -> None:
    """But not behind the place to return to."""
    scan = Scanner()
    scan.add("abc")
    scan.at = 2
    scan.add("d")
    assert (scan.text, scan.at) == ("cd", 0)
    scan.at, scan.return_to = 2, 1
    scan.add("e")
    assert (scan.text, scan.at, scan.return_to) == ("de", 1, 0)

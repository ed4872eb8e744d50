"""chat/tools/json_arguments.py: where a JSON object ends, however the text is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offgrid_llama.chat.tools.json_arguments import JsonArguments, ObjectEnd
from offgrid_llama.chat.tools.scanner import Scanner

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(alphabet='a"\\{}[]\n')),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(alphabet='b"\\}'), inner)),
)


@given(st.dictionaries(st.text(alphabet='a"\\{'), values), st.sampled_from(["", "}", ' "more" ']), st.integers(1, 9))
def test_an_object_is_passed_on_unchanged(value: dict[str, Any], behind: str, step: int) -> None:
    """Brackets and quotes in strings do not end it, and nothing behind it is taken."""
    text = json.dumps(value)
    scan, given_on = Scanner(), list[str]()
    reading = JsonArguments(scan).read("", "", given_on.append)
    for at in range(0, len(text + behind), step):
        scan.add((text + behind)[at : at + step])
        next(reading, None)
    assert "".join(given_on) == text
    assert behind.startswith(scan.rest)


def test_arguments_that_are_no_object() -> None:
    """A text that begins otherwise is none, and one that is cut off was passed on as far as it came."""
    for text, expected in (("[1]", ""), ("  ", ""), ('{"a": [', '{"a": [')):
        scan, given_on = Scanner(), list[str]()
        scan.add(text)
        scan.over = True
        with pytest.raises(StopIteration) as end:
            next(JsonArguments(scan).read("", "", given_on.append))
        assert end.value.value is False
        assert "".join(given_on) == expected


def test_an_escape_that_is_cut() -> None:
    """A backslash at the end of a piece escapes the quote that the next piece begins with."""
    end = ObjectEnd()
    assert end.find('{"a\\', 0) is None
    assert end.find('"}', 0) is None
    assert end.find('"} ', 0) == 2

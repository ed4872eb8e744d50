"""One text of many passages, as it comes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offgrid_llama.text.joined_text import JoinedText


def joined(passages: Sequence[Sequence[str]]) -> str:
    text, found = JoinedText(), ""
    for passage in passages:
        text.begin()
        for piece in passage:
            found += text.push(piece)
    assert found == text.text
    return found


@pytest.mark.parametrize(
    ("passages", "text"),
    [
        ([["Hello"], ["world"]], "Hello world"),
        ([[" ", "\nHel", "lo ", " big", " \n"], [], ["  "], [" world "]], "Hello  big world"),
        ([["你好"], ["世界。"], ["です"]], "你好世界。です"),
        ([["你好"], ["world"], ["안녕"], ["세상"]], "你好 world 안녕 세상"),
        ([[""]], ""),
    ],
)
def test_passages(passages: Sequence[Sequence[str]], text: str) -> None:
    """A space between two, but not in scripts without spaces; those around a passage are left out, those within stay."""
    assert joined(passages) == text


@given(st.lists(st.text(" \nab你")), st.data())
def test_however_it_comes(passages: list[str], data: st.DataObject) -> None:
    """The text does not depend on where a passage is cut into pieces."""
    cut = []
    for passage in passages:
        at = data.draw(st.integers(0, len(passage)))
        cut.append([passage[:at], passage[at:]])
    assert joined(cut) == joined([[passage] for passage in passages])

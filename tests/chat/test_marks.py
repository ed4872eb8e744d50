"""chat/marks.py: marks in a text are found whole, and a mark that arrives in pieces is awaited."""

from __future__ import annotations

import pytest

from offgrid_llama.chat.marks import MARK, mark_end, mark_start, overlap, shared, shared_end


@pytest.mark.parametrize(
    "mark", ["<tool_call>", "</think>", "<|im_end|>", "[INST]", "[/INST]", "<param name>", "]<]box[>["]
)
def test_marks(mark: str) -> None:
    """A mark is found with text around it; a place in it is moved to its start or its end."""
    text = f"a < b {mark} c > d [1] {mark}"
    assert MARK.findall(text) == [mark, mark]
    at = text.find(mark)
    assert {mark_start(text, at + n) for n in range(len(mark))} == {at}
    assert {mark_end(text, at + n) for n in range(1, len(mark) + 1)} == {at + len(mark)}
    assert (mark_start(text, 2), mark_end(text, 2)) == (2, 2)


@pytest.mark.parametrize("text", ["a < b > c", "[x]", "[A]", "<>", "< >", f"<{'x' * 200}>"])
def test_texts_without_marks(text: str) -> None:
    """Comparisons, lists and long texts between angle brackets are no marks."""
    assert MARK.findall(text) == []


def test_overlap() -> None:
    """The end of a text may be the beginning of a mark, but not a whole one."""
    assert overlap("<a>", "") == 0
    assert [overlap(text, "<a><a>b") for text in ("", "x", "x<", "<a", "<a><a>", "<a><a>b", "<a>x")] == [
        0,
        0,
        1,
        2,
        6,
        0,
        0,
    ]


def test_shared() -> None:
    """Two texts share their beginning or their end, which may be all of one of them."""
    assert [shared_end("cba", other) for other in ("dba", "ba", "dcba", "", "x")] == [2, 2, 3, 0, 0]
    assert [shared("abc", other) for other in ("abd", "ab", "abcd", "", "x")] == [2, 2, 3, 0, 0]

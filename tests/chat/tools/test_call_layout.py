"""chat/tools/call_layout.py: where a call stands in a text, by a text with one call more."""

from __future__ import annotations

import pytest

from offgrid_llama.chat.tools.call_format import Slot
from offgrid_llama.chat.tools.call_layout import (
    CALL_ID,
    TEXT,
    TOOL,
    Layout,
    find_json,
    find_numbered,
    find_repeated,
    find_slots,
)


@pytest.mark.parametrize(
    ("begin", "separator", "end"),
    [("<calls>", ", ", "</calls>"), ("", "\n", ""), ("<calls>\n", "", "\n</calls>"), ("a", " ", "z")],
)
def test_a_repeated_item(begin: str, separator: str, end: str) -> None:
    """The texts around an item and between two are told apart, in whole marks."""
    item = f"<call>{TEXT}</call>"
    one, two = begin + item + end, begin + item + separator + item + end
    assert find_repeated(one, two, TEXT) == Layout(begin, item, end, separator)
    assert find_repeated(one, one, TEXT) is None
    assert find_repeated(one, two + "more", TEXT) is None
    assert find_repeated(one, two, "something else") is None


def test_items_with_numbers() -> None:
    """A number that is one higher in the second item is found, whether it counts from 0 or from 1."""
    for first in (0, 1):
        one = f"[{first}: {TEXT}]"
        assert find_numbered(one, f"{one}, [{first + 1}: {TEXT}]", TEXT) == Layout("", one, "", ", ", 1, first)
        assert find_numbered(one, f"{one}, {one}", TEXT) is None


def test_spaces_before_an_item() -> None:
    """They belong to the text before it, and a number in the item moves with them."""
    layout = Layout("<calls>", "\n 1 call", "", ",", 2, 1)
    assert layout.with_spaces_in_begin() == Layout("<calls>\n ", "1 call", "", ",\n ", 0, 1)
    assert Layout("", " call", "").with_spaces_in_begin().separator is None


def test_slots_of_a_call() -> None:
    """Names and ids are found in the text of a call; an id alone is one that has the name in it."""
    text = f'{{"name": "{TOOL}", "id": "{CALL_ID}", "arguments": {{"a": 1}}}}'
    where = find_json(text, {"a": 1})
    assert where is not None
    assert text[slice(*where)] == '{"a": 1}'
    assert find_json(text, {"a": 2}) is None
    assert find_slots(text, [(Slot.ARGUMENTS, *where)]) == (
        '{"name": "', Slot.NAME, '", "id": "', Slot.ID, '", "arguments": ', Slot.ARGUMENTS, "}",
    )  # fmt: skip
    assert find_slots(f"<{CALL_ID}>", []) == ("<", Slot.PATH, ">")
    assert find_slots("<call>", []) is None

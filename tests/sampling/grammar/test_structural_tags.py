"""Structural tags: text is free, but for what is between the tags that begin with a trigger."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import offgrid_llama as og

NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TAGS: dict[str, Any] = {
    "structures": [
        {"begin": "<function=get>", "schema": NUMBER, "end": "</function>"},
        {"begin": "<function=put>", "schema": {"type": "array", "items": {"enum": ["x"]}}, "end": ""},
        {"begin": "[", "schema": {"type": "integer"}, "end": "]"},
    ],
    "triggers": ["<function=", "["],
}


def allows(vocab: og.Vocab, text: str, **flags: bool) -> bool:
    """Return whether a text is allowed, to its end."""
    guide = og.Grammar.structural_tags({**TAGS, **flags}).guide(vocab)
    assert vocab.eos is not None
    for token in (*vocab.tokenize(text, add_special=False), vocab.eos):
        guide.fill()
        if not (np.frombuffer(guide.words(), np.uint32)[token >> 5] >> np.uint32(token & 31)) & 1:
            return False
        guide.accept(token)
    return True


def test_texts(smollm2: og.Model) -> None:
    """A trigger is followed by one of its tags, whole; all else is free."""
    for text in (
        "", "Hello <b>, world!\n", 'hi <function=get>{"a": 1}</function> bye', '<function=put>["x"] then [12][3] .',
    ):  # fmt: skip
        assert allows(smollm2.vocab, text), text
    for text in (
        "a <function=other>", '<function=get>{"b": 1}', '<function=get>{"a": 1}', '<function=get>{"a": 1}<', "[x]", "a [1",
    ):  # fmt: skip
        assert not allows(smollm2.vocab, text), text


TEXTS = [
    "",
    "a",
    "[1]",
    "a [1]",
    "[1] b",
    "[1][2]",
    "a [1] b [2]",
    '<function=get>{"a": 1}</function>',
    "[x]",
    "[1] [x]",
]


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        ({}, TEXTS[:8]), ({"at_least_one": True}, [TEXTS[at] for at in (2, 4, 5, 7)]),
        ({"stop_after_first": True}, [TEXTS[at] for at in (0, 1, 2, 3, 7)]),
        ({"at_least_one": True, "stop_after_first": True}, [TEXTS[at] for at in (2, 7)]),
    ],
)  # fmt: skip
def test_where_tags_may_be(smollm2: og.Model, flags: dict[str, bool], allowed: list[str]) -> None:
    """A text may have to begin with a tag, and to end with its first one."""
    assert [text for text in TEXTS if allows(smollm2.vocab, text, **flags)] == allowed


@pytest.mark.parametrize(
    ("tags", "error", "says"),
    [
        ({"structures": []}, ValueError, "structures"), ({"structures": 5}, TypeError, "structures"),
        ({"triggers": ["x"]}, og.GrammarError, r"structures\[0\]: begin"), ({"triggers": 5}, TypeError, "triggers"),
        ({"triggers": ["[", "<", "<function="]}, og.GrammarError, "not with 2"),
        ({"at_least_one": 1}, TypeError, "at_least_one"), ({"stop_after_first": "x"}, TypeError, "stop_after_first"),
        ({"structures": ["a"]}, TypeError, r"structures\[0\]"),
        ({"structures": [{"begin": "[", "end": 5}]}, TypeError, "texts"),
        ({"structures": [{"begin": "[", "end": "]", "schema": {"type": "x"}}]}, og.GrammarError, r"structures\[0\]: "),
        ({"structures": [{"begin": "[", "end": "]"}] * 200}, ValueError, "128"),
        ({"structures": [{"begin": "[" * 70_000, "end": "]"}]}, og.GrammarError, "limit"),
    ],
)  # fmt: skip
def test_what_is_refused(tags: dict[str, Any], error: type[Exception], says: str) -> None:
    """Tags of another shape, and those that do not begin with one trigger, by their place."""
    with pytest.raises(error, match=says):
        og.Grammar.structural_tags({**TAGS, **tags})
    with pytest.raises(TypeError):
        og.Grammar.structural_tags("a")  # type: ignore[arg-type]

"""JSON as strangers write it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from offgrid_llama.text.json_text import MAX_DEPTH, is_deeper, plain_value, read_json_text, whole_escapes, whole_text


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a\ud83d", "a\ufffd"),
        ("\udc00b", "\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ufeffx\udfff", "\ufeffx\ufffd"),
        ("\U0001f600\x00\u202e", "\U0001f600\x00\u202e"),
        ("\ud800" * 3, "\ufffd" * 3),
        ("\U0010ffff\ud800z", "\U0010ffff\ufffdz"),
    ],
)
def test_halves_of_characters(text: str, whole: str) -> None:
    """Halves of a character are joined, one alone becomes U+FFFD, and all else stays; escapes of them likewise."""
    assert whole_text(text) == whole
    assert json.loads(whole_escapes(json.dumps(text))) == whole


def test_what_only_looks_like_an_escape() -> None:
    """A backslash that is escaped begins no escape."""
    for text in ("\\ud83d", "\\\\ud83d\\udc00", "\\" * 7 + "udfff", "\\n\\u0041"):
        assert json.loads(whole_escapes(json.dumps(text))) == text
    assert whole_escapes(r"\\\ud83d") == r"\\\ufffd"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e999", "1e999"),
        ("-1E400", "-1E400"),
        ("[1e308, 1e-999, -0.0]", [1e308, 0.0, -0.0]),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("9" * 5000, "9" * 5000),
        ("9" * 4300, 10**4300 - 1),
        (r'{"\ud800": "\udc00"}', {"\ufffd": "\ufffd"}),
    ],
)
def test_numbers_and_texts(text: str, value: Any) -> None:
    """A number that no float or int takes is a text."""
    assert read_json_text(text) == value


@pytest.mark.parametrize("text", ["", "{", "{} {}", "[" * 66 + "]" * 66, "[" * 100_000, '{"a":' * 3000, "1e", "nan"])
def test_what_is_no_json(text: str) -> None:
    """Any other text is a ValueError, at any depth."""
    with pytest.raises(ValueError, match=r".+"):
        read_json_text(text)


def test_python_objects() -> None:
    """Objects become what JSON has; others are named by their type, and depth and length are bounded."""
    inf = float("inf")
    assert plain_value({"a": (1, [inf, -inf]), "\ud83d": "\ude00", "b": True, "c": None}) == {
        "a": [1, ["Infinity", "-Infinity"]], "\ufffd": "\ufffd", "b": True, "c": None,
    }  # fmt: skip
    loop: list[Any] = []
    loop.append(loop)
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({1: 2}, TypeError, "names must be str, not int"), ({None: 2}, TypeError, "names must be str, not NoneType"),
        ({"a": {1}}, TypeError, "set is no type of JSON"), ([b"a"], TypeError, "bytes is no type"),
        (10**4400, ValueError, "too many digits"), (loop, ValueError, "deeper than 64"),
    ]  # fmt: skip
    for value, error, told in wrong:
        with pytest.raises(error, match=told):
            plain_value(value)
    deep: Any = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    assert plain_value(deep) == deep
    assert not is_deeper(deep, MAX_DEPTH)
    assert is_deeper([deep], MAX_DEPTH)

"""JSON of requests: how much memory its values may take."""

from __future__ import annotations

import json

import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.json_body import LARGE_NUMBER_MS, LONG_NUMBER_MS, MAX_NUMBERS_MS, read_json

MIB = 2**20


@pytest.mark.parametrize("item", [b"[]", b"[1.5]", b'{"a":1}', b'"ab"', b"[[]]", b"{}"])
def test_too_many_values(item: bytes) -> None:
    """A body is refused before it is read where its values would take much more memory than its bytes."""
    body = b'{"x": [%b]}' % b",".join([item] * (8 * MIB // (len(item) + 1)))
    with pytest.raises(ApiError, match="too many values") as refused:
        read_json(body, 64, 8 * MIB)
    assert refused.value.status == 413


@pytest.mark.parametrize(
    "number",
    [b"1e308", b"2.5E+300", b"1e+0299", b"3e288", b"9007199254740993.0", b"9007199254740993", b"0.%b5" % (b"3" * 900)],
)
def test_too_many_slow_numbers(number: bytes) -> None:
    """Numbers that take long to read are counted, wherever they are; as texts they may come in any number."""
    ms = LARGE_NUMBER_MS if b"e" in number.lower() else len(number) // 16 * LONG_NUMBER_MS
    n = int(MAX_NUMBERS_MS / ms)
    numbers = b",\n".join([number] * (n + n // 100))  # one that a slice's end cuts does not count
    for body in (b"[%b ]", b'{"x": {"y": [%b ]}}'):
        with pytest.raises(ApiError, match="numbers with 16 or more digits") as refused:
            read_json(body % numbers, 64, 8 * MIB)
        assert refused.value.status == 413
    assert len(read_json(b"[%b ]" % b",".join([number] * n), 64, 8 * MIB)) == n
    told = numbers.replace(b"\n", b" ").decode()
    assert read_json(json.dumps({"y": [told, f'"{told}']}).encode(), 64, 8 * MIB) == {"y": [told, f'"{told}']}


@pytest.mark.parametrize("text", ['[{\\"a\\":1},', ",", '\\"', "{", "a:"])
def test_long_texts(text: str) -> None:
    """Long texts may have any characters, wherever the texts are; those are no values."""
    long = text.encode() * (3 * MIB // len(text))
    body = b'{"model": "m", "x": "%b", "y": [{"z": "%b"}]}' % (long, long)
    assert len(read_json(body, 64, 8 * MIB)["x"]) == len(read_json(body, 64, 8 * MIB)["y"][0]["z"]) >= MIB


def test_too_many_names() -> None:
    """Each new name takes time in which nothing else runs; names that are there already count as much."""
    names = [b'"%d":1' % i for i in range(120_000)]
    with pytest.raises(ApiError, match="too many values"):
        read_json(b"{%b}" % b",".join(names), 64, 8 * MIB)
    assert len(read_json(b"{%b}" % b",".join(names[:90_000]), 64, 8 * MIB)) == 90_000


def test_many_numbers() -> None:
    """A list of token ids of the largest size is read."""
    body = b'{"x": [%b]}' % b",".join([b"12345"] * (8 * MIB // 6 - 10))
    assert len(read_json(body, 64, 8 * MIB)["x"]) > 10**6


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (rb"a\ud83d", "a\ufffd"), (rb"\uDC00", "\ufffd"), (rb"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (rb"\\\ud83d!", "\\\ufffd!"),
        (rb"\ud83d\ude00\ud83d", "\U0001f600\ufffd"), (rb"\ud83d\n", "\ufffd\n"),
    ],
)  # fmt: skip
def test_half_of_a_character(text: bytes, value: str) -> None:
    """A text that its client has cut in the middle of a character is read, with U+FFFD there; so is a name."""
    assert read_json(b'{"%b": ["%b"]}' % (text, text), 64, MIB) == {value: [value]}
    for wrong in (b'["%b"' % text, b'["%b\xff"]' % text, rb'["%b\u12"]' % text):
        with pytest.raises(ApiError, match="not valid JSON"):
            read_json(wrong, 64, MIB)

"""Conversations without their oldest messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from offgrid_llama.worker.shortening import shortened

CONVERSATION = [
    {"role": role, "content": content}
    for role, content in (
        ("system", "S"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "calls"), ("tool", "t2"),
        ("assistant", "a2"), ("system", "Z"), ("user", "u3"),
    )
]  # fmt: skip


def n_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(message["content"]) for message in messages)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (99, "S u1 a1 u2 calls t2 a2 Z u3"), (19, "S u1 a1 u2 calls t2 a2 Z u3"), (18, "S u2 calls t2 a2 Z u3"),
        (15, "S u2 calls t2 a2 Z u3"), (14, "S Z u3"), (4, "S Z u3"), (3, None),
    ],
)  # fmt: skip
def test_what_is_kept(limit: int, kept: str | None) -> None:
    """System messages stay, and the newest turns that fit: no result is without its call."""
    found = shortened(CONVERSATION, n_tokens, limit)
    assert (None if found is None else " ".join(message["content"] for message in found)) == kept


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (17, "S u1 a1 u2 b1 t1 b2 t2 t3"), (16, "S u2 b1 t1 b2 t2 t3"), (12, "S u2 b2 t2 t3"), (9, "S u2 b2 t2 t3"),
        (8, None),
    ],
)  # fmt: skip
def test_a_long_last_turn(limit: int, kept: str | None) -> None:
    """Its question stays, and its oldest calls are left out with their results."""
    roles = {"S": "system", "u": "user", "t": "tool"}
    texts = ["S", "u1", "a1", "u2", "b1", "t1", "b2", "t2", "t3"]
    found = shortened([{"role": roles.get(text[0], "assistant"), "content": text} for text in texts], n_tokens, limit)
    assert (None if found is None else " ".join(message["content"] for message in found)) == kept


def test_few_lengths_are_computed() -> None:
    """Each length costs a rendering: there are as few as halving needs."""
    many = [{"role": "user", "content": "u"}] * 1024
    asked: list[int] = []

    def count(messages: Sequence[Mapping[str, Any]]) -> int:
        asked.append(len(messages))
        return len(messages)

    found = shortened(many, count, 100)
    assert found is not None
    assert len(found) == 100
    assert len(asked) <= 11


def test_without_a_user() -> None:
    """There is no turn to begin with."""
    assert shortened([{"role": "system", "content": "S"}], n_tokens, 9) is None

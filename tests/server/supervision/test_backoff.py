"""Rests after deaths, and requests that are suspected of them."""

from __future__ import annotations

import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.supervision.backoff import Backoff
from offgrid_llama.server.supervision.suspects import MAX_SUSPECTS, Suspects, fingerprint


def test_rests_grow_and_are_forgotten() -> None:
    """None after the first death, then 1, 2, 4 ... up to 60 seconds; after a minute without a death all is forgotten."""
    now = 1000.0
    backoff = Backoff(lambda: now)
    assert backoff.seconds_left() == 0
    rests = []
    for _ in range(9):
        backoff.count_death()
        rests.append(backoff.seconds_left())
    assert rests == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    now += 59
    assert backoff.seconds_left() == 1
    now += 2
    assert backoff.seconds_left() == 0
    backoff.count_death()
    assert backoff.seconds_left() == 0


def test_suspects() -> None:
    """A request is refused after two deaths, unless it was answered in between; the oldest are forgotten."""
    suspects = Suspects()
    suspects.count_death(b"a")
    suspects.refuse(b"a")
    suspects.clear(b"a")
    for _ in range(2):
        suspects.refuse(b"a")
        suspects.count_death(b"a")
    with pytest.raises(ApiError, match="not tried again") as refused:
        suspects.refuse(b"a")
    assert refused.value.code == "request_quarantined"
    for i in range(MAX_SUSPECTS):
        suspects.count_death(i.to_bytes(2, "big"))
    suspects.refuse(b"a")


def test_fingerprints() -> None:
    """One model and request have one; a number of more than 64 bits is the client's mistake."""
    assert fingerprint("m", {"a": 1}) == fingerprint("m", {"a": 1})
    assert len({fingerprint("m", {"a": 1}), fingerprint("n", {"a": 1}), fingerprint("m", {"a": 2})}) == 3
    with pytest.raises(ApiError, match="64 bits"):
        fingerprint("m", {"a": 2**64})

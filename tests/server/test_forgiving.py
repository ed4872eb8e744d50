"""Objects of which unknown names are ignored."""

from __future__ import annotations

import logging

import pytest

from offgrid_llama.server import forgiving
from offgrid_llama.server.forgiving import Forgiving


class Pet(Forgiving):
    place = "pets"
    name: str = "none"
    age: int | None = None


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgiving, "_told", set())


def test_what_is_known_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown name has no effect, and the log tells of it once; a null says nothing."""
    with caplog.at_level(logging.WARNING, "offgrid_llama.server"):
        for _ in range(2):
            pet = Pet.model_validate({"name": None, "age": 3, "wings": 2})
            assert (pet.name, pet.age) == ("none", 3)
        Pet.model_validate({"name": "a"})
    assert [record.getMessage() for record in caplog.records] == [
        "requests have 'pets.wings', which is not known here and has no effect"
    ]


def test_the_log_stays_small(caplog: pytest.LogCaptureFixture) -> None:
    """Clients choose the names: the log tells of some, and of the beginning of long ones."""
    with caplog.at_level(logging.WARNING, "offgrid_llama.server"):
        Pet.model_validate({f"{i:04d}" * 100: 1 for i in range(2 * forgiving.MAX_TOLD)})
    assert len(caplog.records) == forgiving.MAX_TOLD
    assert max(len(record.getMessage()) for record in caplog.records) < 120

"""Responses in memory: within bounds, of which each key has its share."""

from __future__ import annotations

from offgrid_llama.server.stored_responses.in_memory import InMemory
from offgrid_llama.server.stored_responses.record import Record


def record(id_: str, key: str = "", n_bytes: int = 10) -> Record:
    return Record(id_, key, None, False, b"a" * n_bytes, b"")


def kept(memory: InMemory, key: str = "") -> str:
    return "".join(id_ for id_ in "abcdef" if memory.get(key, id_))


def test_too_many() -> None:
    """The one that was used least recently goes; putting one again is no further one."""
    memory = InMemory(3, 1000, 0)
    for id_ in "aabc":
        memory.put(record(id_))
    memory.get("", "a")
    memory.put(record("d"))
    assert kept(memory) == "acd"


def test_too_many_bytes() -> None:
    """The key with the most bytes loses its own; a record that is too large by itself is not kept."""
    memory = InMemory(100, 100, 0)
    memory.put(record("a", "one"))
    for id_ in "bcdef":
        memory.put(record(id_, "two", 30))
    assert (kept(memory, "one"), kept(memory, "two")) == ("a", "def")
    memory.put(record("b", "one", 101))
    assert "b" not in kept(memory, "one")
    memory.close()
    assert kept(memory, "two") == ""


def test_keys() -> None:
    """A key finds and deletes its own only."""
    memory = InMemory(3, 1000, 0)
    memory.put(record("a", "one"))
    assert memory.get("two", "a") is None
    assert not memory.delete("two", "a")
    assert memory.get("one", "a") is not None
    assert memory.delete("one", "a")
    assert not memory.delete("one", "a")
    assert memory.get("one", "a") is None


def test_age() -> None:
    """A record that is too old is not there."""
    memory = InMemory(3, 1000, 1e-9)
    memory.put(record("a"))
    assert memory.get("", "a") is None


def test_lists() -> None:
    """The records of a key whose ids begin alike, the first or the last one first; a use does not change the order."""
    memory = InMemory(100, 1000, 0)
    for id_, key in (("a1", "one"), ("b1", "one"), ("a2", "one"), ("a3", "two")):
        memory.put(record(id_, key))
    memory.get("one", "a1")
    for newest_first, ids in ((False, ["a1", "a2"]), (True, ["a2", "a1"])):
        assert [each.id for each in memory.records("one", "a", newest_first=newest_first)] == ids
    assert [*memory.records("three", "a", newest_first=False)] == []

"""Responses in a file: they are there after a restart, and the file is one server's."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helpers.children import RunChild
from offgrid_llama.server.stored_responses.in_sqlite import InSqlite
from offgrid_llama.server.stored_responses.record import Record

MANY = 10**9


def record(id_: str, key: str = "", n_bytes: int = 10, **more: Any) -> Record:
    return Record(id_, key, more.get("previous"), more.get("running", False), b"{" + b"a" * (n_bytes - 1), b"", b"")


def opened(path: Path, max_bytes: int = MANY, max_seconds: float = 0) -> InSqlite:
    return InSqlite(path / "responses", max_bytes, max_seconds)


def kept(file: InSqlite, key: str = "") -> str:
    return "".join(id_ for id_ in "abcdef" if file.get(key, id_))


def test_a_restart(tmp_path: Path) -> None:
    """Records come back as they were, the last one with an id; only this user can read the file."""
    one = Record("a", "k", None, False, b"{}", b"[]", b"\0\xff")
    other = Record("b", "k", "a", False, b'{"b": 1}', b"[1]", b"")
    file = opened(tmp_path)
    for each in (record("a", "k"), one, other):
        file.put(each)
    file.close()
    again = opened(tmp_path)
    assert (again.get("k", "a"), again.get("k", "b")) == (one, other)
    again.close()
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_keys(tmp_path: Path) -> None:
    """A key finds and deletes its own only."""
    file = opened(tmp_path)
    file.put(record("a", "one"))
    assert file.get("two", "a") is None
    assert not file.delete("two", "a")
    assert file.delete("one", "a")
    assert not file.delete("one", "a")
    assert file.get("one", "a") is None
    file.close()


def test_too_many_bytes(tmp_path: Path) -> None:
    """The key with the most bytes loses its oldest, also after a restart; a record that is too large is not kept."""
    file = opened(tmp_path, 100)
    file.put(record("a", "one"))
    for id_ in "bcd":
        file.put(record(id_, "two", 30))
    file.close()
    file = opened(tmp_path, 100)
    for id_ in "ef":
        file.put(record(id_, "two", 30))
    assert (kept(file, "one"), kept(file, "two")) == ("a", "def")
    file.put(record("b", "one", 101))
    assert (kept(file, "one"), kept(file, "two")) == ("a", "def")
    file.close()


def test_age(tmp_path: Path) -> None:
    """A record that is too old is not there, and goes with the next one."""
    file = opened(tmp_path, max_seconds=1e-9)
    file.put(record("a"))
    assert file.get("", "a") is None
    file.put(record("b"))
    file.close()
    with sqlite3.connect(tmp_path / "responses") as raw:
        assert raw.execute("SELECT id FROM responses").fetchall() == [("b",)]
    raw.close()


def test_what_was_running(tmp_path: Path) -> None:
    """A response that a server was generating when it ended has failed, and says so; the rest stays."""
    response = msgspec.json.encode({"id": "a", "status": "in_progress", "error": None, "output": []})
    file = opened(tmp_path)
    file.put(Record("a", "", None, True, response, b"[]"))
    file.put(record("b"))
    file.close()
    file = opened(tmp_path)
    found = file.get("", "a")
    assert found is not None
    assert not found.running
    told = msgspec.json.decode(found.response)
    assert (told["status"], told["error"]["code"]) == ("failed", "server_error")
    assert "does not begin again" in told["error"]["message"]
    assert file.get("", "b") == record("b")
    file.close()


def damage(path: Path) -> None:
    path.write_bytes(b"x" * 5000)


def of_another_version(path: Path) -> None:
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "says"), [(damage, "not a database"), (of_another_version, "table 99"), (a_folder, "directory")]
)
def test_files_that_cannot_be_used(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    """They are refused with their path, and stay as they are."""
    make(tmp_path / "responses")
    with pytest.raises(OSError, match=says) as refused:
        opened(tmp_path)
    assert str(tmp_path / "responses") in str(refused.value)


def test_one_server_at_a_time(tmp_path: Path, run_child: RunChild) -> None:
    """A second server is refused while the first one runs."""
    source = """
        import sys
        from pathlib import Path
        from offgrid_llama.server.stored_responses.in_sqlite import InSqlite
        try:
            InSqlite(Path(sys.argv[1]), 1000, 0)
        except OSError as error:
            print(error)
    """
    file = opened(tmp_path)
    file.put(record("a"))
    assert "another server uses it" in run_child(source, tmp_path / "responses").stdout
    file.close()
    assert run_child(source, tmp_path / "responses").stdout == ""


def test_a_full_disk(tmp_path: Path, run_child: RunChild) -> None:
    """A record that cannot be written is an error, and what was there stays and can be read."""
    source = """
        import resource, sys
        from pathlib import Path
        from offgrid_llama.server.stored_responses.in_sqlite import InSqlite
        from offgrid_llama.server.stored_responses.record import Record
        file = InSqlite(Path(sys.argv[1]), 10**9, 0)
        file.put(Record("a", "", None, False, b"{}", b"[]"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            file.put(Record("b", "", None, False, b"a" * 10**6, b"[]"))
        except OSError as error:
            print("refused", error)
        print(file.get("", "a") is not None, file.get("", "b"))
        file.put(Record("c", "", None, False, b"{}", b"[]"))
    """
    done = run_child(source, tmp_path / "responses")
    assert done.returncode == 0, done.stderr
    refused, found = done.stdout.splitlines()
    assert refused.startswith(f"refused {tmp_path / 'responses'}: ")
    assert found == "True None"
    file = opened(tmp_path)
    assert kept(file) == "ac"
    file.close()


def test_lists(tmp_path: Path) -> None:
    """The records of a key whose ids begin alike, the first or the last one first."""
    file = opened(tmp_path)
    for id_, key in (("a1", "one"), ("b1", "one"), ("a2", "one"), ("a3", "two")):
        file.put(record(id_, key))
    for newest_first, ids in ((False, ["a1", "a2"]), (True, ["a2", "a1"])):
        assert [each.id for each in file.records("one", "a", newest_first=newest_first)] == ids
    assert [*file.records("three", "a", newest_first=False)] == []
    file.close()

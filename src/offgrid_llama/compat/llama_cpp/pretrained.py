"""Models of the Hugging Face hub for ``Llama.from_pretrained``, by the package huggingface-hub."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["downloaded"]


def downloaded(
    repo_id: str,
    filename: str | None,
    additional_files: Sequence[str] | None,
    local_dir: str | Path | None,
    cache_dir: str | Path | None,
) -> str:
    """Download the file of a repository whose name fits ``filename``, and further ones; return the first one's path.

    Raises ImportError without huggingface-hub, and ValueError where not exactly one file fits a name.
    """
    try:
        from huggingface_hub import HfFileSystem, hf_hub_download
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # their own way to it
    except ImportError as error:
        raise ImportError("Llama.from_pretrained needs a package: pip install huggingface-hub") from error
    validate_repo_id(repo_id)
    listed: list[Any] = HfFileSystem().ls(repo_id, recursive=True)
    names = [each["name"] if isinstance(each, dict) else each for each in listed]
    files = [str(PurePosixPath(name).relative_to(repo_id)) for name in names]

    def download(pattern: str | None) -> str:
        name = PurePosixPath(_only(repo_id, pattern, files))
        folder = "" if str(name.parent) == "." else str(name.parent)
        return str(
            hf_hub_download(
                repo_id=repo_id, filename=name.name, subfolder=folder or None, local_dir=local_dir, cache_dir=cache_dir
            )
        )

    path = download(filename)
    for each in additional_files or ():
        download(each)
    return str(Path(path))


def _only(repo_id: str, pattern: str | None, files: Sequence[str]) -> str:
    """Return the file that fits a pattern."""
    found = [file for file in files if pattern is not None and fnmatch.fnmatch(file, pattern)]
    if len(found) != 1:
        said = "No file" if not found else "Multiple files"
        raise ValueError(f"{said} found in {repo_id} that match {pattern}\n\nAvailable Files:\n{files}")
    return found[0]

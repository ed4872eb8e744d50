"""vendor/fetch_llama_cpp.py: a clone with an empty submodule gets llama.cpp, or one clear error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = "vendor/fetch_llama_cpp.py"
SUBMODULE = "vendor/llama.cpp"


def git(*arguments: str, cwd: Path) -> str:
    """Run git and return what it prints."""
    env = {
        **os.environ,
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@t",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@t",
    }
    return subprocess.run(
        ["git", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def pinned() -> str:
    """Return the commit that the repository's gitlink names."""
    return git("ls-files", "--stage", "--", SUBMODULE, cwd=ROOT).split()[1]


def clone(folder: Path, commit: str) -> Path:
    """Make a repository like a fresh clone of ours: the script, .gitmodules and a gitlink to ``commit``."""
    (folder / "vendor").mkdir(parents=True)
    shutil.copy(ROOT / SCRIPT, folder / SCRIPT)
    shutil.copy(ROOT / ".gitmodules", folder)
    git("init", "-q", cwd=folder)
    git("add", ".", cwd=folder)
    git("update-index", "--add", "--cacheinfo", f"160000,{commit},{SUBMODULE}", cwd=folder)
    git("commit", "-qm", "a clone", cwd=folder)
    return folder


def fetch(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script in ``folder``."""
    return subprocess.run(
        [sys.executable, SCRIPT],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def no_index(tmp_path: Path) -> dict[str, str]:
    """Environment in which pip finds only what lies in a folder of the test's own."""
    links = tmp_path / "links"
    links.mkdir()
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_CONFIG_FILE": os.devnull}


def test_an_empty_submodule_is_filled_with_the_pinned_commit(tmp_path: Path) -> None:
    """A clone without its submodule gets the pinned commit from the sdist, clean and with its own origin."""
    folder = clone(tmp_path / "clone", pinned())
    # The leftovers of a fetch that was killed before its checkout: a repository whose origin is gone.
    leftover = folder / ".git/modules" / SUBMODULE
    git("init", "-q", "--bare", str(leftover), cwd=folder)
    git("config", "core.bare", "false", cwd=leftover)
    git("remote", "add", "origin", str(tmp_path / "gone"), cwd=leftover)
    done = fetch(folder)
    assert done.returncode == 0, done.stderr
    assert git("rev-parse", "HEAD", cwd=folder / SUBMODULE) == pinned()
    assert (folder / SUBMODULE / "include/llama.h").is_file()
    assert git("status", "--porcelain", cwd=folder) == ""
    assert git("submodule", "status", cwd=folder).startswith(pinned())
    assert "github.com/ggml-org/llama.cpp" in git("remote", "get-url", "origin", cwd=folder / SUBMODULE)
    assert "already there" in fetch(folder, PIP_NO_INDEX="1").stdout


def assert_one_clear_error(done: subprocess.CompletedProcess[str], folder: Path, why: str) -> None:
    """Check that the script failed with its own error, both cures, and nothing half done."""
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "git submodule update --init" in done.stderr
    assert "pip download" in done.stderr
    assert why in done.stderr
    assert not (folder / SUBMODULE / "CMakeLists.txt").exists()


def test_no_network_is_one_clear_error(tmp_path: Path, no_index: dict[str, str]) -> None:
    """Without a network the error names both cures."""
    folder = clone(tmp_path / "clone", pinned())
    assert_one_clear_error(fetch(folder, **no_index), folder, "No matching distribution")


@pytest.mark.parametrize("content", [b"", b"not a tar file at all", b"\x1f\x8b\x08\x00" + b"\0" * 4096])
def test_a_wrong_or_cut_off_download_is_one_clear_error(
    tmp_path: Path, no_index: dict[str, str], content: bytes
) -> None:
    """A download whose sha256 is not the pinned one is refused before it is opened."""
    folder = clone(tmp_path / "clone", pinned())
    (tmp_path / "links" / "llama_cpp_python-0.3.36.tar.gz").write_bytes(content)
    assert_one_clear_error(fetch(folder, **no_index), folder, "HASH")


def test_a_folder_without_git_is_one_clear_error(tmp_path: Path, no_index: dict[str, str]) -> None:
    """A source archive without git's data cannot know the commit, and says so."""
    folder = clone(tmp_path / "clone", pinned())
    shutil.rmtree(folder / ".git")
    assert_one_clear_error(fetch(folder, GIT_CEILING_DIRECTORIES=str(tmp_path), **no_index), folder, "git")

"""Put llama.cpp into ``vendor/llama.cpp``. The build calls this; ``python vendor/fetch_llama_cpp.py`` does the same.

Three steps, and the first that works is the last:

1. The submodule is there already (``git clone --recurse-submodules``, ``git submodule update --init``, or an sdist).
2. The source distribution of llama-cpp-python ``SDIST`` on the Python package index carries the very commit that our
   submodule is pinned to, with its git objects. pip fetches it and proves its sha256; git checks the commit out of it,
   and a checkout by id is itself the proof of the content.
3. One error that names both cures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUBMODULE = "vendor/llama.cpp"
SDIST = "llama-cpp-python==0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"


class FetchError(Exception):
    """llama.cpp could not be brought; the message is for the user."""


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Return what ``command`` prints, or raise FetchError with the end of what it complained about."""
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FetchError(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        reasons = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        wanted = [line for line in reasons if line.lower().startswith(("error", "fatal"))] or reasons[-3:]
        raise FetchError(f"`{' '.join(map(str, command[:6]))} ...` failed: " + " | ".join(wanted))
    return done.stdout.strip()


def git(*arguments: str, cwd: Path = ROOT) -> str:
    """Run git free of what a surrounding hook or a parent repository put into its environment."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key == "GIT_SSL_CAINFO"}
    return run("git", *arguments, cwd=cwd, env=env)


def pinned_commit() -> str:
    """Return the commit id that this repository's own gitlink names."""
    top = Path(git("rev-parse", "--show-toplevel")).resolve()
    if top != ROOT:
        raise FetchError(f"{ROOT} is not a git clone of its own")
    mode, commit, *_ = git("ls-files", "--stage", "--", SUBMODULE).split() or ("", "")
    if mode != "160000":
        raise FetchError(f"git knows no submodule at {SUBMODULE}")
    return commit


def download(folder: Path) -> Path:
    """Let pip bring the sdist, with the user's own index, proxy and certificates, and check its sha256."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    # -I: inside pip's isolated build environment PYTHONPATH hides the pip of the outer one.
    for python in ([sys.executable], [sys.executable, "-I"]):
        if subprocess.run([*python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
            break
    else:
        raise FetchError("pip is not installed for " + sys.executable)
    run(*python, "-m", "pip", "download", "--no-deps", "--no-binary", SDIST.partition("==")[0],
        "--require-hashes", "--dest", folder, "--requirement", requirement)  # fmt: skip
    return next(folder.glob("*.tar.gz"))


def unpack_objects(sdist: Path, folder: Path) -> Path:
    """Unpack only the submodule's git folder out of the sdist, and return its path."""
    with tarfile.open(sdist) as archive:
        inner = f"/.git/modules/{SUBMODULE}/"
        members = [member for member in archive.getmembers() if inner in f"/{member.name}/"]
        archive.extractall(folder, members=members)  # noqa: S202 - its sha256 is pinned above
    objects = next(folder.glob(f"*/.git/modules/{SUBMODULE}"))
    git("config", "--file", str(objects / "config"), "--unset", "core.worktree")  # its files were left in the archive
    return objects


def fetch() -> str:
    """Do the three steps and say which one it was."""
    target = ROOT / SUBMODULE
    if (target / "CMakeLists.txt").is_file():
        return f"{SUBMODULE}: already there"
    try:
        commit = pinned_commit()
        with tempfile.TemporaryDirectory(prefix="offgrid-llama-") as name:
            objects = unpack_objects(download(Path(name)), Path(name))
            git("cat-file", "-e", f"{commit}^{{commit}}", cwd=objects)
            # A fetch that was cut off has left a repository behind whose origin is gone with its temporary folder.
            leftover = ROOT / git("rev-parse", "--git-path", f"modules/{SUBMODULE}")
            if leftover.is_dir():
                git("config", "remote.origin.url", str(objects), cwd=leftover)
            git("-c", "protocol.file.allow=always", "-c", f"submodule.{SUBMODULE}.url={objects}",
                "submodule", "update", "--init", "--force", "--", SUBMODULE)  # fmt: skip
        git("submodule", "init", "--", SUBMODULE)
        git("submodule", "sync", "--", SUBMODULE)
        head = git("rev-parse", "HEAD", cwd=target)
        if head != commit:
            raise FetchError(f"git checked out {head}, not {commit}")
    except (FetchError, OSError, tarfile.TarError, StopIteration) as error:
        raise FetchError(
            f"{SUBMODULE} is empty and llama.cpp could not be fetched.\n"
            f"  why:   {error}\n"
            f"  cure:  git submodule update --init        (from the internet), or\n"
            f"         make `pip download --no-deps --no-binary llama-cpp-python {SDIST}` work and build again"
        ) from error
    return f"{SUBMODULE}: {commit} out of {SDIST}"


if __name__ == "__main__":
    try:
        print(fetch())
    except FetchError as failure:
        sys.exit(f"error: {failure}")

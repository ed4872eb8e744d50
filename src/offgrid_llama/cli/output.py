r"""Output: results to stdout, all else to stderr, and no characters that a terminal would take for a command.

Models, their metadata and names come from strangers. Every control character for a terminal is written out as ``\x1b`` and
the like, and no text is read as rich's markup.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

__all__ = [
    "ReaderGone", "columns", "download", "err", "human", "json_out", "mib", "one_line", "out", "printable", "put",
    "put_bytes", "steps",
]  # fmt: skip

# C0 but for tab and newline, DEL, C1; characters for the direction of text; surrogates, which no encoding takes.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class ReaderGone(Exception):  # noqa: N818 - it is no error
    """The reader of our output has closed the pipe, as ``head`` does."""


def printable(text: str) -> str:
    """Return the text with control characters written out; tabs and newlines stay."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str, limit: int = 2000) -> str:
    """Return the text as one printable line, cut to ``limit`` characters."""
    line = printable(text[: limit + 1]).replace("\n", "\\n").replace("\t", "\\t")
    return line if len(line) <= limit else line[: limit - 3] + "..."


def put(text: str) -> None:
    """Write a piece of text to stdout at once. Raises ReaderGone, or OSError where it cannot be written."""
    _write(sys.stdout, printable(text) if _is_terminal(sys.stdout) else text)


def put_bytes(data: bytes) -> None:
    """Write bytes to stdout, for a file or a program that reads them. Raises ReaderGone, as ``put`` does."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def out(*lines: str) -> None:
    """Write lines to stdout, as ``printable`` text."""
    _write(sys.stdout, "".join(printable(line) + "\n" for line in lines))


def err(line: str) -> None:
    """Write a line to stderr. A failure is ignored, as it could not be reported."""
    with suppress(OSError, ValueError, ReaderGone):
        _write(sys.stderr, printable(line) + "\n")


def json_out(value: Any) -> None:
    """Write one JSON value to stdout, in ASCII, which every encoding and terminal can show."""
    _write(sys.stdout, json.dumps(value, indent=2) + "\n")


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed before the program started
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        if error.filename is None:
            error.filename = getattr(stream, "name", "output").strip("<>")
        raise


def hush() -> None:
    """Send the rest of stdout's buffer to /dev/null, so that the interpreter's last flush does not fail."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def human(size: int | None) -> str:
    """Return a file's size in megabytes or gigabytes: ``98.4 MB``."""
    if size is None:
        return "?"
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def mib(size: int) -> str:
    """Return an amount of memory in mebibytes or gibibytes: ``11.3 MiB``."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def columns(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return the rows as lines with aligned columns; ``right`` has the numbers of those aligned at the right."""
    rows = [[one_line(cell, 200) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


@contextmanager
def download(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Give a progress callback for the store: a bar where stderr is a terminal, else one line when a download begins.

    Nothing is shown for a model that the cache has.
    """
    label = one_line(name, 60)
    if not _is_terminal(sys.stderr):
        told = False

        def tell(done: int, total: int | None) -> None:
            nonlocal told
            if not told and done != total:
                told = True
                err(f"downloading {label} ({human(total)})" if total else f"downloading {label}")

        yield tell
        return

    from rich.progress import DownloadColumn, TransferSpeedColumn

    with _bar(f"downloading {label}", DownloadColumn(), TransferSpeedColumn()) as show:
        yield show


@contextmanager
def steps(label: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Give a progress callback for counted steps: a bar where stderr is a terminal, else one line at the beginning.

    Its arguments are the steps that are done, and how many there are, None where that is not known.
    """
    if not _is_terminal(sys.stderr):
        err(label)
        yield lambda done, total: None
        return

    from rich.progress import MofNCompleteColumn, TextColumn

    with _bar(one_line(label, 60), MofNCompleteColumn(), TextColumn(unit)) as show:
        show(0, None)
        yield show


@contextmanager
def _bar(label: str, *columns: ProgressColumn) -> Iterator[Callable[[int, int | None], None]]:
    """Give a callback that draws a bar with these columns on stderr, from the first unfinished step to the block's end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), *columns, TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    task = bar.add_task(label, total=None)

    def show(done: int, total: int | None) -> None:
        if not bar.live.is_started and done != total:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()

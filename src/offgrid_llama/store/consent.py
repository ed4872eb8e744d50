"""``download=``: whether a name may be downloaded, and how its progress is shown."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

from .transfer import ProgressCallback, megabytes

if TYPE_CHECKING:
    from .entries import Entry

__all__ = ["Download", "about", "checked_download", "shown"]

Download: TypeAlias = "Literal['auto', 'never'] | ProgressCallback"
"""The way to treat a name that the cache does not have.

"auto" downloads it, with a line in the log and, where stderr is a terminal, a progress bar. "never" raises StoreError.
A function downloads it, too, and is called with (done, total) in bytes.
"""


def checked_download(download: Download | bool) -> Download:
    """Return ``download``, True and False by their names. Raises TypeError or ValueError for anything else."""
    if isinstance(download, bool):
        return "auto" if download else "never"
    if isinstance(download, str):
        if download not in ("auto", "never"):
            raise ValueError(f'download must be "auto", "never" or a function of (done, total), not {download!r}')
        return download
    if not callable(download):
        raise TypeError(f'download must be "auto", "never" or a function, not {type(download).__name__}')
    if inspect.iscoroutinefunction(download):
        raise TypeError("download must be a function that is not async: nothing would await it")
    return download


def about(entry: Entry) -> str:
    """Return a model's name, size and licence."""
    size = f"{megabytes(entry.size)}, " if entry.size else ""
    return f"{entry.name} ({size}license: {entry.license})"


@contextmanager
def shown(entry: Entry) -> Iterator[ProgressCallback | None]:
    """Give the callback of a progress bar on stderr; None where that is no terminal."""
    stream = sys.stderr
    if stream is None or stream.closed or not stream.isatty():
        yield None
        return
    try:
        from rich.progress import Progress
    except ImportError:
        yield _counter(entry, stream.write, stream.flush)
        stream.write("\n")
        return
    from rich.console import Console

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"downloading {entry.name}", total=entry.size)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _counter(entry: Entry, write: Callable[[str], object], flush: Callable[[], object]) -> ProgressCallback:
    """Return a callback that writes the per cent over and over on one line."""

    def show(done: int, total: int | None) -> None:
        much = f"{done * 100 // total} % of {megabytes(total)}" if total else megabytes(done)
        write(f"\rdownloading {entry.name}: {much}")
        flush()

    return show

"""Terminals and pipes: what is shown, and what a model writes there."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from helpers.commands import in_terminal, posix

pytest.importorskip("typer")


SLOW_STORE = """
    import sys, time
    from offgrid_llama import store
    from offgrid_llama.cli import main

    def pull(name, *, progress):
        for done in range(0, 50_000_001, 10_000_000):
            progress(done, 50_000_000)
            time.sleep(0.15)
        return sys.executable and __import__("pathlib").Path(sys.executable)

    store.pull = pull
    sys.exit(main())
"""


@posix
def test_a_download_shows_a_bar_on_a_terminal() -> None:
    """A bar with bytes and speed, which is gone at the end; a name is no markup."""
    code, written = in_terminal(SLOW_STORE, "pull", "[red]x")
    assert code == 0
    assert "downloading [red]x" in written
    assert "━" in written
    assert "/50.0 MB" in written
    assert written.rstrip().endswith(sys.executable)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h")  # the cursor is back


def test_a_download_shows_one_line_in_a_pipe(run_child: Any) -> None:
    """No bar, no escape codes: one line that says what is going on, and the path on stdout."""
    done = run_child(SLOW_STORE, "pull", "x")
    assert done.stderr == "downloading x (50.0 MB)\n"
    assert done.stdout == f"{sys.executable}\n"


@posix
def test_counted_steps_show_a_bar_on_a_terminal() -> None:
    """A bar with the number of steps and their unit from the beginning, and none at the end."""
    code, written = in_terminal(
        """
        import time
        from offgrid_llama.cli import output
        with output.steps("[red]working", "tensors") as progress:
            for done in range(1, 4):
                time.sleep(0.15)
                progress(done, 3)
            time.sleep(0.15)
        print("done")
        """
    )
    assert code == 0
    assert "[red]working" in written
    assert re.search(r"3/3\S* tensors", written)
    assert written.rstrip().endswith("done")
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h")  # the cursor is back


def test_counted_steps_show_one_line_in_a_pipe(run_child: Any) -> None:
    """No bar: one line at the beginning."""
    done = run_child(
        """
        from offgrid_llama.cli import output
        with output.steps("working", "tensors") as progress:
            progress(1, 2)
            progress(2, 2)
        """
    )
    assert (done.stdout, done.stderr) == ("", "working\n")


@posix
def test_what_a_model_writes_does_not_drive_the_terminal() -> None:
    """Control characters are written out on a terminal; newlines and tabs are text."""
    code, written = in_terminal(
        """
        from offgrid_llama.cli import output
        for piece in ("a\\tb\\n", "\\x1b", "]0;owned\\x07", "\\x9b31m\\rover", "\\u202e", "\\n"):
            output.put(piece)
        """
    )
    assert code == 0
    assert written.replace("\r\n", "\n") == "a\tb\n\\x1b]0;owned\\x07\\x9b31m\\rover\\u202e\n"

"""The program without a command, its help, and what it needs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from helpers.commands import MAIN, Cli

pytest.importorskip("typer")


def test_the_first_look(cli: Cli) -> None:
    """--version says what this is; --help lists the exit codes; nothing at all is a question for help."""
    assert re.fullmatch(r"offgrid-llama [\d.]+ \(llama\.cpp \S+( [0-9a-f]{12})?\)\n", cli("--version")[0])
    out, _ = cli("--help")
    assert re.search(r"Exit codes: 0 done;.*130 interrupted", " ".join(out.split()))
    assert "Usage: offgrid-llama" in cli(code=2)[0]
    assert "--max-tokens" in cli("run", "-h")[0]


def test_verbose_shows_the_log_of_llama_cpp(cli: Cli) -> None:
    """llama.cpp is silent until it is asked to speak, and then on stderr."""
    out, err = cli("tokenize", "--ids", "Hello", "--verbose")
    assert out == "19556\n"
    assert "offgrid_llama.llama_cpp: " in err
    assert cli("-v", "tokenize", "--ids", "Hello")[1].count("\n") == err.count("\n")


def test_without_typer_it_says_what_to_install(run_child: Any) -> None:
    """The command line is an extra; without it there is one line that names the cure."""
    for missing in ("typer", "rich"):
        done = run_child(f"import sys; sys.modules[{missing!r}] = None; {MAIN}", "models")
        assert done.returncode == 1
        assert done.stderr == (
            "offgrid-llama: the command line needs typer and rich: pip install 'offgrid-llama[cli]'\n"
        )

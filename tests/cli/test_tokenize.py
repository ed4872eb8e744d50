"""``offgrid-llama tokenize``."""

from __future__ import annotations

import json
import re

import pytest

from helpers.commands import Cli

pytest.importorskip("typer")


def test_tokenize(cli: Cli) -> None:
    """Ids and pieces, ids alone, and JSON; special tokens are read only when asked for."""
    out, err = cli("tokenize", "Hello  w🙂")
    assert out.splitlines()[0] == '  19556  "Hello"'
    assert re.fullmatch(r"\d tokens\n", err)
    assert cli("tokenize", "--ids", "-", stdin=b"Hello")[0] == "19556\n"
    plain, special = (
        json.loads(cli("tokenize", "--json", "<|im_end|>", flag)[0])
        for flag in ("--no-parse-special", "--parse-special")
    )
    assert plain["count"] > 1
    assert special == {"count": 1, "tokens": [{"id": 2, "piece": "<|im_end|>", "bytes": b"<|im_end|>".hex()}]}

"""``offgrid-llama inspect``: what is in a file."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

import offgrid_llama as og
from helpers.commands import Cli, gguf
from helpers.projectors import write_meaning

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("typer")


def test_inspect_says_what_is_in_a_file(cli: Cli, smollm2_path: Path, smollm2: og.Model) -> None:
    """Facts, quantization, arrays in short, and the memory of a context."""
    out, err = cli("inspect", smollm2_path, "--n-ctx", "1024", "--tensors")
    assert err == ""
    assert re.search(r"^tensors +210 q4_1 \(66\.4 MB\), 61 f32 \(0\.1 MB\), 1 q8_0 \(30\.1 MB\)$", out, re.MULTILINE)
    assert re.search(r"^  KV cache +22\.5 MiB", out, re.MULTILINE)
    assert re.search(r"^  tokenizer\.ggml\.tokens +49,152 x str: '<\|endoftext\|>', ", out, re.MULTILINE)
    assert re.search(r"^  blk\.29\.attn_k\.weight +q4_1 +576 x 192 +69,120$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) < 200

    facts = json.loads(cli("inspect", "smollm2-135m-instruct", "--n-ctx", "1024", "--type-k", "q8_0", "--json")[0])
    assert facts["parameters"] == smollm2.n_params
    assert facts["context_length"] == 8192
    assert sum(kind["bytes"] for kind in facts["quantization"].values()) == smollm2.size == facts["memory"]["weights"]
    assert facts["memory"]["kv_cache"] == pytest.approx(1024 * 30 * 192 * (2 + 34 / 32), abs=0.006 * 2**20)
    assert facts["metadata"]["tokenizer.ggml.merges"]["length"] == 48900
    assert cli("inspect", smollm2_path, "--template")[0] == f"{smollm2.chat_template()}\n"


def test_metadata_of_a_stranger_stays_text(cli: Cli, tmp_path: Path) -> None:
    """Escape sequences, newlines and markup are shown and not obeyed; a file that is no model is inspected all the same."""
    evil = "\x1b]0;owned\x07[red]x[/red]\nerror: \u202egnp.exe\x9b31m"
    path = gguf(tmp_path / "evil.gguf", general__architecture="\x1b[2J", general__name=evil)
    out, _ = cli("inspect", path)
    assert "name           \\x1b]0;owned\\x07[red]x[/red]\\nerror: \\u202egnp.exe\\x9b31m\n" in out
    assert "memory: cannot be planned: " in out
    facts = json.loads(cli("inspect", path, "--json")[0])
    assert facts["name"] == evil
    assert "error" in facts["memory"]


def test_a_projector(cli: Cli, smollm2: og.Model, tmp_path: Path) -> None:
    """What sees or hears for a model: its encoders, and no memory of a context, which it has none of."""
    path = tmp_path / "mmproj.gguf"
    write_meaning(path, smollm2)
    out, _ = cli("inspect", path)
    assert re.search(r"^sees with +gemma4uv\nhears with +gemma4ua$", out, re.MULTILINE)
    assert "memory" not in out
    assert "chat template" not in out
    facts = json.loads(cli("inspect", path, "--json")[0])
    assert facts["encoders"] == {"vision": "gemma4uv", "audio": "gemma4ua"}
    assert "memory" not in facts

"""``offgrid-llama quantize``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from helpers.commands import Cli

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("typer")


def test_quantize(cli: Cli, smollm2_path: Path, tmp_path: Path) -> None:
    """A model is quantized into a file, which says what it is; a plan alone writes none, and refusals are one line."""
    target = tmp_path / "q.gguf"
    out, err = cli("quantize", smollm2_path, target, "q8_0", "--allow-requantize", "--tensor-type", "attn_k=f16")
    assert out == f"{target}: 96.6 MB -> 146.1 MB (181 q8_0, 61 f32, 30 f16)\n"
    assert err == f"quantizing {smollm2_path.name} to q8_0\n"
    assert " Paris" in cli("run", "--raw", "--model", target, "--max-tokens", "3", "The capital of France is")[0]
    facts = json.loads(cli("quantize", smollm2_path, "x", "q4_0", "--dry-run", "--json")[0])
    assert (facts["path"], facts["bytes_source"], facts["tensors"]["f32"]) == (None, 96576768, 61)
    wrong: list[tuple[list[str | Path], str]] = [
        (["q8_0"], "allow_requantize=True"),
        (["q9"], "ftype must be one of F32"),
        (["q8_0", "--tensor-type", "x"], "REGEX=TYPE"),
        (["q8_0", "--imatrix", smollm2_path], "no importance matrix"),
    ]
    for args, message in wrong:
        _, err = cli("quantize", smollm2_path, tmp_path / "x.gguf", *args, code=4 if "--imatrix" in args else 2)
        assert message in err
    assert not (tmp_path / "x.gguf").exists()

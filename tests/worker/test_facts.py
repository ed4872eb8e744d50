"""The facts that clients are told of models that are not loaded."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

import offgrid_llama as og
from helpers.infill import FIM
from helpers.rerankers import write_bert
from helpers.twin import LETTERS, write_tiny_llama
from offgrid_llama import start
from offgrid_llama.errors import GGUFError
from offgrid_llama.worker.facts import facts_of
from offgrid_llama.worker.frames import Facts, FactsOf

THINKS = "{% for m in messages %}{{ m.content }}{% endfor %}<think></think>"


def written(folder: Path, **more: Any) -> str:
    """Return a tiny llama with further keys."""
    path = folder / f"{len(list(folder.iterdir()))}.gguf"
    write_tiny_llama(path, more={**LETTERS, **more})
    return str(path)


def test_a_real_model(smollm2_path: Path, smollm2: og.Model) -> None:
    """The facts are those that the loaded model tells."""
    facts = facts_of(str(smollm2_path), None)
    assert (facts.size, facts.file_type, facts.n_params) == (98_362_432, smollm2.ftype, smollm2.n_params)
    assert (facts.n_ctx_train, facts.n_embd) == (smollm2.n_ctx_train, smollm2.n_embd)
    assert (facts.template, facts.architecture) == (smollm2.chat_template(), "llama")
    assert (facts.generates, facts.chats, facts.reasons, facts.fills, facts.embeds) == (True, True, False, False, False)
    scalars = {key: value for key, value in facts.metadata.items() if not isinstance(value, list)}
    assert scalars.keys() <= smollm2.metadata.keys()
    assert facts.metadata["tokenizer.ggml.tokens"] == []
    assert "tokenizer.chat_template" not in facts.metadata
    assert len(facts.digest) == 64


def test_what_a_model_can_do(tmp_path: Path) -> None:
    """It chats with a template, its own or another; reasons if that does; fills gaps with its tokens; or makes vectors."""
    plain = facts_of(written(tmp_path), None)
    assert (plain.generates, plain.chats, plain.fills, plain.reasons, plain.embeds) == (
        True,
        False,
        False,
        False,
        False,
    )
    own = written(tmp_path, **{"tokenizer.chat_template": "{{ messages }}"})
    assert facts_of(own, None).chats
    assert not facts_of(own, None).reasons
    assert facts_of(own, THINKS).reasons
    assert facts_of(own, THINKS).template == THINKS
    assert facts_of(own, "{% broken").chats
    assert facts_of(written(tmp_path, **FIM), None).fills
    named = [*LETTERS["tokenizer.ggml.tokens"]]  # type: ignore[misc]
    named[4] = "<|fim_middle|>"
    assert facts_of(written(tmp_path, **{"tokenizer.ggml.tokens": named}), None).fills
    assert facts_of(written(tmp_path, **{"llama.pooling_type": 1}), None).embeds
    write_bert(tmp_path / "bert.gguf")
    bert = facts_of(str(tmp_path / "bert.gguf"), "{{ messages }}")
    assert (bert.generates, bert.chats, bert.embeds) == (False, False, True)


def test_digests(tmp_path: Path) -> None:
    """The same file has the same digest under any name, and another one another."""
    one, same = written(tmp_path), written(tmp_path)
    other = written(tmp_path, **{"general.name": "other"})
    digests = [facts_of(file, None).digest for file in (one, same, other)]
    assert (digests[0] == digests[1], digests[0] == digests[2]) == (True, False)


def test_the_process(tmp_path: Path) -> None:
    """It tells of each file in turn, also behind one that is no model."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    asked = [FactsOf(str(bad)), FactsOf(str(tmp_path / "nothing.gguf")), FactsOf(written(tmp_path), "{{ messages }}")]
    done = subprocess.run(
        start.command("offgrid_llama.worker.facts"), input=msgspec.json.encode(asked), capture_output=True, check=True
    )
    told = [msgspec.json.decode(line, type=Facts | str) for line in done.stdout.splitlines()]
    assert [type(each) for each in told] == [str, str, Facts]
    assert "damaged" in str(told[0])
    assert isinstance(told[2], Facts)
    assert told[2].chats
    with pytest.raises(GGUFError):
        facts_of(str(bad), None)

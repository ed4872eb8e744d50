"""``offgrid-llama batch``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Cli

pytest.importorskip("typer")


def write(path: Path, bodies: dict[str, dict[str, Any]]) -> Path:
    lines = [
        {"custom_id": name, "method": "POST", "url": url_of(body)}
        | {"body": body if "input" in body else {"model": "anything", "temperature": 0, "max_tokens": 8, **body}}
        for name, body in bodies.items()
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def url_of(body: dict[str, Any]) -> str:
    names = {"prompt": "/v1/completions", "input": "/v1/embeddings"}
    return next((url for name, url in names.items() if name in body), "/v1/chat/completions")


def responses(path: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({each["custom_id"] for each in found}) == len(found)
    return {each["custom_id"]: each["response"] for each in found}


def test_batch(cli: Cli, smollm2_path: Path, tmp_path: Path) -> None:
    """Requests are answered; one that the API refuses is an error of its own; a second run does what is missing."""
    bodies: dict[str, dict[str, Any]] = {
        "text": {"prompt": "The capital of France is"}, "chat": {"messages": [{"role": "user", "content": "Hi"}]},
        "wrong": {"messages": [], "wibble": 1}, "vector": {"input": ["a", "b"]},
    }  # fmt: skip
    out = tmp_path / "out.jsonl"
    said, _ = cli("batch", write(tmp_path / "in.jsonl", bodies), out, "--model", smollm2_path, code=1)
    assert said == f"{out}: 4 responses, 1 of them errors\n"
    found = responses(out)
    assert {name: each["status_code"] for name, each in found.items()} == {
        "text": 200,
        "chat": 200,
        "wrong": 400,
        "vector": 200,
    }
    assert "Paris" in found["text"]["body"]["choices"][0]["text"]
    assert [len(each["embedding"]) for each in found["vector"]["body"]["data"]] == [576, 576]
    assert found["chat"]["body"]["choices"][0]["message"]["content"]
    assert "wibble" in found["wrong"]["body"]["error"]["message"]
    before = out.read_bytes()
    out.write_bytes(before + b'{"id": "cut')
    more = {**bodies, "later": {"prompt": "1 2 3"}}
    said, told = cli("batch", write(tmp_path / "in.jsonl", more), out, "--model", smollm2_path)
    assert said == f"{out}: 1 responses, 0 of them errors\n"
    assert "4 of 5 requests are answered already" in told
    assert out.read_bytes().startswith(before)
    assert set(responses(out)) == set(more)


def test_what_is_no_batch(cli: Cli, tmp_path: Path) -> None:
    """Lines that are no requests are told by their numbers, before a model is loaded; so is a file of something else."""
    path = write(tmp_path / "in.jsonl", {"a": {"prompt": "a"}})
    line = path.read_text(encoding="utf-8")
    path.write_text(f"{line}\n{line}\n{{", encoding="utf-8")
    _, told = cli("batch", path, tmp_path / "out.jsonl", code=2)
    assert "line 2: custom_id: 'a' comes a second time; line 3: the line is not valid JSON" in told
    path.write_text(line, encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text("precious\n", encoding="utf-8")
    _, told = cli("batch", path, other, code=2)
    assert "no response of a batch" in told
    assert other.read_text(encoding="utf-8") == "precious\n"


def test_a_batch_that_is_killed(smollm2_path: Path, tmp_path: Path) -> None:
    """After ``kill -9`` in the middle, the next run does the rest: each request has one response, and none is lost."""
    bodies = {str(i): {"prompt": f"{i} and", "max_tokens": 2 + i % 8} for i in range(48)}
    endless = {
        "0": {"prompt": "0 and", "max_tokens": 6000, "ignore_eos": True}
    }  # so that the kill comes before the end
    source, out = write(tmp_path / "in.jsonl", bodies | endless), tmp_path / "out.jsonl"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "offgrid_llama.cli",
        "batch",
        source,
        out,
        "--model",
        smollm2_path,
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not (out.exists() and out.read_bytes().count(b"\n") >= 5):
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = out.read_bytes()
    n_before = before.count(b"\n")
    assert 5 <= n_before < len(bodies)
    write(source, bodies)
    subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    assert set(responses(out)) == set(bodies)
    assert out.read_bytes().startswith(before[: before.rindex(b"\n") + 1])

"""OpenAI's files and batches, by its own client."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch, FileObject
from openai.types.responses import Response

from helpers.apps import ask
from helpers.official import check
from helpers.serving import MODEL, Served, serving, wait_until
from offgrid_llama.server import SettingsError, create_app

TOOL = {
    "type": "function", "name": "weather", "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]},
}  # fmt: skip
KEYS = ("key of the first", "key of the other")


@contextmanager
def batching(folder: Path, *arguments: str) -> Iterator[Served]:
    environment = {"OFFGRID_LLAMA_BATCH_DIR": str(folder), "OFFGRID_LLAMA_API_KEYS": ",".join(KEYS)}
    with serving(MODEL, *arguments, environment=environment) as served:
        yield served


def client_of(served: Served, key: str = KEYS[0]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


ENDLESS: Any = {"max_tokens": 6000, "ignore_eos": True}
"""It goes on to the end of its sequence."""


def lines(n: int, first: Mapping[str, Any] | None = None, **more: Any) -> bytes:
    """Return a batch of ``n`` requests, the last of which is refused by the API; the first one may differ."""
    bodies = [{"model": MODEL, "prompt": f"{i} and", "max_tokens": 16, "temperature": 0, **more} for i in range(n)]
    bodies[0].update(first or {})
    bodies[-1]["wibble"] = 1
    requests = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body} for i, body in enumerate(bodies)
    ]
    return "\n".join(map(json.dumps, requests)).encode()


def begin(client: openai.OpenAI, data: bytes, endpoint: Any = "/v1/completions") -> Batch:
    file = client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"})


def ended(client: openai.OpenAI, batch: Batch, *reasons: str) -> Batch:
    wait_until(lambda: client.batches.retrieve(batch.id).status in reasons, 120)
    return client.batches.retrieve(batch.id)


def answers(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    found = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    assert len({each["custom_id"] for each in found}) == len(found)
    return {each["custom_id"]: each["response"] for each in found}


def test_a_batch(tmp_path: Path) -> None:
    """A file is uploaded, its requests are answered, and the answers are files; of another key nothing is there."""
    with batching(tmp_path) as served:
        client = client_of(served)
        batch = begin(client, lines(6))
        assert batch.status in ("validating", "in_progress")
        done = ended(client, batch, "completed", "failed")
        check(Batch, client.batches.with_raw_response.retrieve(batch.id).http_response.json())
        assert (done.status, done.metadata) == ("completed", {"a": "b"})
        counts = done.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (6, 5, 1)
        found = answers(client, done.output_file_id)
        assert set(found) == set("01234")
        assert {each["status_code"] for each in found.values()} == {200}
        alone = client.completions.create(model=MODEL, prompt="2 and", max_tokens=16, temperature=0)
        assert found["2"]["body"]["choices"][0]["text"] == alone.choices[0].text
        (wrong,) = answers(client, done.error_file_id).values()
        assert (wrong["status_code"], wrong["body"]["error"]["param"]) == (400, "wibble")
        described = client.files.with_raw_response.retrieve(batch.input_file_id).http_response.json()
        check(FileObject, described, ("status_details", "expires_at"))
        assert [each.id for each in client.batches.list()] == [batch.id]
        assert {each.purpose for each in client.files.list()} == {"batch", "batch_output"}
        other = client_of(served, KEYS[1])
        assert (list(other.files.list()), list(other.batches.list())) == ([], [])
        for use in (other.files.content, other.files.delete, other.files.retrieve):
            with pytest.raises(openai.NotFoundError, match="there is no file"):
                use(batch.input_file_id)
        with pytest.raises(openai.NotFoundError, match="there is no batch"):
            other.batches.cancel(batch.id)
        assert client.files.delete(batch.input_file_id).deleted


def test_a_batch_of_responses(tmp_path: Path) -> None:
    """Its answers are those of the Responses API, whole, and are not kept; one that goes on from a response is refused."""
    asked: dict[str, Any] = {"model": MODEL, "max_output_tokens": 48, "temperature": 0, "parallel_tool_calls": False}
    bodies: dict[str, dict[str, Any]] = {
        "text": {"input": "Hi", "stream": True}, "call": {"input": "Hi", "tools": [TOOL], "tool_choice": "required"},
        "next": {"input": "Hi", "previous_response_id": "resp_1"},
    }  # fmt: skip
    requests = [
        {"custom_id": name, "method": "POST", "url": "/v1/responses", "body": {**asked, **body}}
        for name, body in bodies.items()
    ]
    with batching(tmp_path) as served:
        client = client_of(served)
        batch = begin(client, "\n".join(map(json.dumps, requests)).encode(), "/v1/responses")
        done = ended(client, batch, "completed", "failed")
        found = answers(client, done.output_file_id)
        assert set(found) == {"text", "call"}
        for each in found.values():
            check(Response, each["body"], ("store", "warnings"))
        text, called = (Response.model_validate(found[name]["body"]) for name in ("text", "call"))
        alone = client.responses.create(input="Hi", **asked)
        assert text.output_text == alone.output_text != ""
        call = called.output[0]
        assert call.type == "function_call"
        assert list(json.loads(call.arguments)) == ["city"]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(text.id)
        (wrong,) = answers(client, done.error_file_id).values()
        assert (wrong["status_code"], wrong["body"]["error"]["param"]) == (400, "previous_response_id")


def test_a_server_that_is_killed(tmp_path: Path) -> None:
    """After ``kill -9`` in the middle the next server goes on: each request has one answer, none is computed twice."""
    with batching(tmp_path) as served:
        client = client_of(served)
        batch = begin(client, lines(40, ENDLESS, max_tokens=32))  # the kill comes before its end
        output = tmp_path / "batches" / f"{batch.id}.output"
        wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") >= 3, 120)
        os.kill(served.pid, signal.SIGKILL)
        served.process.wait(30)
    before = output.read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    assert 3 <= kept.count(b"\n") < 39
    output.write_bytes(kept + b'{"id": "cut')
    with batching(tmp_path, "--n-ctx", "512") as served:  # where sequences are short
        client = client_of(served)
        done = ended(client, batch, "completed", "failed")
        assert done.status == "completed"
        assert set(answers(client, done.output_file_id)) == set(map(str, range(39)))
        assert client.files.content(done.output_file_id or "").content.startswith(kept)
        assert set(answers(client, done.error_file_id)) == {"39"}


def test_batches_that_end_otherwise(tmp_path: Path) -> None:
    """A cancelled batch has what was answered; lines that are no requests fail the batch, with their numbers."""
    with batching(tmp_path) as served:
        client = client_of(served)
        broken = begin(client, lines(1) + b"\n{\n" + lines(1))
        long = begin(client, lines(200, **ENDLESS))
        failed = ended(client, broken, "failed")
        assert failed.errors is not None
        assert [(each.line, each.code) for each in failed.errors.data or ()] == [
            (2, "invalid_json"), (3, "duplicate_custom_id"),
        ]  # fmt: skip
        wait_until(lambda: client.batches.retrieve(long.id).status == "in_progress", 120)
        client.batches.cancel(long.id)
        cancelled = ended(client, long, "cancelled")
        counts = cancelled.request_counts
        assert counts is not None
        assert counts.completed < 199
        assert (cancelled.output_file_id is not None) == (counts.completed > 0)
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(long.id)


def test_without_a_folder() -> None:
    """A server without batch_dir says so."""
    app = create_app(models=[])
    for method, path in (("GET", "/v1/files"), ("GET", "/v1/batches"), ("POST", "/v1/files")):
        answer = ask(app, method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batches_are_off")


def test_uploads_that_are_none(tmp_path: Path) -> None:
    """A form needs a file and a purpose, and has limits; nothing of a refused one is left."""
    app = create_app(models=[], batch_dir=str(tmp_path), max_files_bytes=1024)

    def told(**options: Any) -> tuple[int, str]:
        answer: httpx.Response = ask(app, "POST", "/v1/files", **options)
        return answer.status_code, answer.json()["error"]["message"]

    file = {"file": ("a.jsonl", b"x")}
    assert told(json={})[0] == 415
    assert told(files=file)[1].startswith("purpose: must be one of batch, ")
    assert told(files={"other": file["file"]}, data={"purpose": "batch"}) == (400, "file: a file is required")
    assert told(files={"file": ("a", b"x" * 200_000)}, data={"purpose": "batch"})[0] == 413
    assert told(files={"file": ("a", b"x" * 2000)}, data={"purpose": "batch"})[0] == 413
    assert told(content=b"x", headers={"Content-Type": "multipart/form-data"})[0] == 400
    assert list((tmp_path / "files").iterdir()) == []
    with pytest.raises(SettingsError, match="another server uses"):
        create_app(models=[], batch_dir=str(tmp_path))

"""Responses in a file, of a server that is killed: what a client was told is there is there afterwards, for its key."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from helpers.keys import KEYS
from helpers.long_responses import LONG
from helpers.official import check
from helpers.serving import MODEL, Served, serving, wait_until

OPTIONS: Any = {"model": MODEL, "max_output_tokens": 3}


@contextmanager
def kept(folder: Path) -> Iterator[Served]:
    keys = folder / "keys"
    keys.write_text("\n".join(KEYS))
    keys.chmod(0o600)
    environment = {"OFFGRID_LLAMA_RESPONSES_FILE": str(folder / "responses")}
    with serving(MODEL, "--api-key-file", str(keys), ready=False, environment=environment) as served:
        wait_until(lambda: httpx.get(f"{served.url}/health", timeout=10).status_code == 200, 120)
        yield served


def client_of(served: Served, key: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEYS[key], max_retries=0)


def test_a_killed_server(tmp_path: Path, smollm2_path: Path) -> None:
    """Nothing that was acknowledged is lost; what was running has failed, and says so; other keys see nothing of it."""
    del smollm2_path  # it is there
    acknowledged: list[str] = []

    def ask(n: int) -> None:
        with client_of(served) as client:
            before: str | None = None
            for i in range(1000):
                try:
                    found = client.responses.create(**OPTIONS, input=f"{n} {i}", previous_response_id=before)
                except openai.APIError:
                    return
                acknowledged.append(found.id)
                before = found.id if i % 4 else None

    with kept(tmp_path) as served, ThreadPoolExecutor(4) as pool:
        client = client_of(served)
        running = client.responses.create(**LONG)
        with client.responses.retrieve(running.id, stream=True) as stream:
            seen = [next(iter(stream)).sequence_number for _ in range(9)]
        asking = [pool.submit(ask, n) for n in range(4)]
        wait_until(lambda: len(acknowledged) > 20, 120)
        os.kill(served.pid, signal.SIGKILL)
        for each in asking:
            each.result()
    with kept(tmp_path) as served:
        client, other = client_of(served), client_of(served, 1)
        assert len(acknowledged) > 20
        for id_ in acknowledged:
            assert client.responses.retrieve(id_).status in ("completed", "incomplete")
        going_on = client.responses.create(**OPTIONS, input="b", previous_response_id=acknowledged[-1])
        assert going_on.output_text
        failed = client.responses.retrieve(running.id)
        assert failed.error is not None
        assert (failed.status, failed.error.code) == ("failed", "server_error")
        check(Response, client.responses.with_raw_response.retrieve(running.id).http_response.json(), ["store"])
        rest = list(client.responses.retrieve(running.id, stream=True, starting_after=seen[-1]))
        assert [(event.type, event.sequence_number) for event in rest] == [("error", 9), ("response.failed", 10)]
        for ask_for in (other.responses.retrieve, other.responses.delete, other.responses.cancel,
                        other.responses.input_items.list):  # fmt: skip
            with pytest.raises(openai.NotFoundError):
                ask_for(acknowledged[0])
        with pytest.raises(openai.BadRequestError, match="not found"):
            other.responses.create(**OPTIONS, input="b", previous_response_id=acknowledged[0])
        with pytest.raises(openai.NotFoundError):
            other.responses.create(**OPTIONS, input=[{"type": "item_reference", "id": going_on.output[0].id}])
        hers = other.responses.create(**LONG)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(hers.id)
        assert other.responses.cancel(hers.id).status == "cancelled"


def test_a_stop(tmp_path: Path, smollm2_path: Path) -> None:
    """A server that stops keeps what runs in the background as failed, and what was deleted does not come back."""
    del smollm2_path  # it is there
    (tmp_path / "settings.toml").write_text("grace_seconds = 0.001\n")
    environment = {"OFFGRID_LLAMA_RESPONSES_FILE": str(tmp_path / "responses")}
    config = ("--config", str(tmp_path / "settings.toml"))
    with serving(MODEL, *config, environment=environment) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        running = client.responses.create(**LONG)
        deleted = client.responses.create(**OPTIONS, input="a")
        client.responses.delete(deleted.id)
        wait_until(lambda: client.responses.retrieve(running.id).status == "in_progress")
    with serving(MODEL, *config, environment=environment) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        found = client.responses.retrieve(running.id)
        assert found.error is not None
        assert (found.status, found.error.code) == ("failed", "server_error")
        assert found.error.message.startswith("the server ended while it generated this response")
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(deleted.id)

"""Models, metrics and health over HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from helpers.requests import ASKED, post
from helpers.serving import ALIAS, MODEL, Served, wait_until


def test_models(client: openai.OpenAI, server: Served) -> None:
    """All are listed; the first request loads one; it is described, and unloaded without losing a request."""
    names = [model.id for model in client.models.list()]
    assert names == [MODEL, "gemma-3-270m", ALIAS]
    assert client.models.retrieve(ALIAS).id == ALIAS
    options: Any = {"model": "gemma-3-270m", "prompt": "The capital of France is", "max_tokens": 200, "temperature": 0}
    with client.completions.create(**options, stream=True) as stream:
        chunks = iter(stream)
        text = next(chunks).choices[0].text
        assert server.models()["gemma-3-270m"]["status"] == "ready"
        assert post(server, "/models/load/gemma-3-270m", {}).status_code == 200
        # The answer comes when the stream has ended, which goes on to its end.
        with ThreadPoolExecutor(1) as pool:
            unloaded = pool.submit(post, server, "/models/unload/gemma-3-270m", {})
            text += "".join(chunk.choices[0].text for chunk in chunks)
            assert unloaded.result().status_code == 200
    assert len(text) > 100
    assert server.models()["gemma-3-270m"]["status"] == "unloaded"
    assert post(server, "/v1/completions", {**options, "max_tokens": 4}).status_code == 200
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="../../etc/passwd", messages=ASKED)


def test_metrics_and_health(server: Served) -> None:
    """Requests are counted, memory is reported, and no text of a request is in the metrics or the log."""
    before = server.metric("offgrid_llama_tokens_total")
    secret = "xylophone-secret-word"
    asked = {"model": MODEL, "messages": [{"role": "user", "content": secret}], "max_tokens": 4}
    assert post(server, "/v1/chat/completions", asked).status_code == 200
    assert post(server, "/v1/chat/completions", {**asked, "stream": True}).text.endswith("data: [DONE]\n\n")
    assert server.metric("offgrid_llama_tokens_total") > before
    wait_until(lambda: server.metric("offgrid_llama_worker_memory_bytes") > 10**8)
    text = httpx.get(f"{server.url}/metrics", timeout=10).text
    for name in ("requests_total", "time_to_first_token_seconds_bucket", "inter_token_seconds_bucket",
                 "engine_prompt_tokens_cached_total", "requests_active"):  # fmt: skip
        assert f"offgrid_llama_{name}" in text
    assert secret not in text
    assert secret not in "\n".join(server.log)
    assert httpx.get(f"{server.url}/health", timeout=10).json() == {"status": "ok"}

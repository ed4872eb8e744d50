"""The server against workers and files that misbehave: other models go on, and no request is lost."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.clients import body, chat
from helpers.serving import MODEL, Served, events, serving, wait_until


def test_models_that_compute_at_once_share_the_cores(server: Served) -> None:
    """Each has its share of them while the other computes, and all of them when it computes alone."""
    n_cores = len(os.sched_getaffinity(0))
    text = {
        "model": "gemma-3-270m",
        "prompt": "Once upon a time",
        "max_tokens": 6000,
        "ignore_eos": True,
        "stream": True,
    }
    post = functools.partial(httpx.stream, "POST", timeout=60)
    with post(url=f"{server.url}/v1/completions", json=text) as one:
        pieces = events(one)
        next(pieces)
        assert server.models()["gemma-3-270m"]["threads"] == n_cores
        asked = body(stream=True, max_tokens=6000, ignore_eos=True)
        with post(url=f"{server.url}/v1/chat/completions", json=asked) as other:
            found = events(other)  # which ends its request as soon as nothing refers to it
            next(found)
            threads = {model["threads"] for model in server.models().values()}
            assert threads == {max(1, n_cores // 2)}
            assert chat(server, max_tokens=8).status_code == 200
    wait_until(lambda: server.models()["gemma-3-270m"]["requests"] == 0)
    assert chat(server, max_tokens=2).status_code == 200
    assert server.models()[MODEL]["threads"] == n_cores


@pytest.fixture(scope="module")
def fragile(smollm2_path: Path, gemma_path: Path) -> Iterator[Served]:
    """A server for this file alone, whose workers may be killed."""
    del smollm2_path, gemma_path
    with serving(MODEL, "gemma-3-270m", "--n-ctx", "16384") as served:
        yield served


def test_a_worker_that_is_killed(fragile: Served) -> None:
    """Its streams get an error at once, those of other models go on, and it restarts."""
    other = {"model": "gemma-3-270m", "prompt": "Once upon a time", "max_tokens": 120, "temperature": 0}
    assert httpx.post(f"{fragile.url}/v1/completions", json={**other, "max_tokens": 1}, timeout=120).status_code == 200
    victim = fragile.models()[MODEL]
    assert victim["status"] == "ready"
    assert victim["pid"] in fragile.worker_pids()
    begun = threading.Barrier(9)
    seconds: list[float] = []
    killed_at = [0.0]

    def stream(path: str, asked: dict[str, Any]) -> list[str]:
        with httpx.stream("POST", f"{fragile.url}{path}", json={**asked, "stream": True}, timeout=120) as response:
            found = []
            for event in events(response):
                found.append(event)
                if len(found) == 3:
                    begun.wait(60)
            if path.endswith("chat/completions"):
                seconds.append(time.monotonic() - killed_at[0])
            return found

    with ThreadPoolExecutor(8) as pool:
        chats = [pool.submit(stream, "/v1/chat/completions", body(seed=i, max_tokens=2000, ignore_eos=True))
                 for i in range(4)]  # fmt: skip
        texts = [pool.submit(stream, "/v1/completions", other) for _ in range(4)]
        begun.wait(60)
        killed_at[0] = time.monotonic()
        os.kill(victim["pid"], signal.SIGKILL)
        for each in chats:
            found = each.result()
            assert found[-1] != "[DONE]"
            assert json.loads(found[-1])["error"]["code"] == "worker_died"
        for each in texts:
            assert each.result()[-1] == "[DONE]"
    assert max(seconds) < 1.0
    wait_until(lambda: httpx.get(f"{fragile.url}/health", timeout=10).status_code == 200)
    assert chat(fragile, max_tokens=8).status_code == 200
    assert fragile.metric("offgrid_llama_worker_restarts_total") == 1


def test_a_request_at_two_deaths(fragile: Served) -> None:
    """It is retried after the first, and refused after the second; other requests are not."""
    wait_until(lambda: fragile.models()[MODEL]["status"] == "ready")

    def kill_when_asked(times: int) -> None:
        for _ in range(times):
            wait_until(
                lambda: fragile.models()[MODEL]["status"] == "ready" and fragile.models()[MODEL]["requests"] > 0, 60
            )
            pid = fragile.models()[MODEL]["pid"]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: pid not in fragile.worker_pids(), 60)  # type: ignore[misc]

    os.kill(fragile.models()[MODEL]["pid"], signal.SIGSTOP)  # it answers nothing before it is killed
    endless = {"max_tokens": 6000, "ignore_eos": True}
    for times, status, asked in ((1, 200, {"max_tokens": 20}), (2, 503, endless)):
        killer = threading.Thread(target=kill_when_asked, args=(times,))
        killer.start()
        assert chat(fragile, **asked).status_code == status
        killer.join()
    refused = chat(fragile, **endless)
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "request_quarantined")
    wait_until(lambda: fragile.models()[MODEL]["status"] == "ready")
    assert chat(fragile, max_tokens=8, seed=3).status_code == 200


def test_models_take_turns_where_memory_is_short(smollm2_path: Path, gemma_path: Path) -> None:
    """With memory for one model, requests to both are answered in any order, and none is lost."""
    del smollm2_path, gemma_path
    settings = {"OFFGRID_LLAMA_MEMORY_BUDGET": str(600 * 2**20)}
    with (
        serving(MODEL, "gemma-3-270m", "--n-ctx", "8192", environment=settings) as served,
        ThreadPoolExecutor(8) as pool,
    ):

        def ask(i: int) -> int:
            if i % 2:
                return chat(served, max_tokens=10, seed=i).status_code
            asked = {"model": "gemma-3-270m", "prompt": f"{i} is", "max_tokens": 10}
            return httpx.post(f"{served.url}/v1/completions", json=asked, timeout=240).status_code

        assert list(pool.map(ask, range(24))) == [200] * 24
        assert len(served.worker_pids()) == 1


def test_a_file_that_is_no_model(tmp_path: Path, smollm2_path: Path) -> None:
    """Its requests are told why and when to retry; other models answer."""
    del smollm2_path
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    with serving(MODEL, f"bad={bad}") as served:
        for _ in range(3):
            response = chat(served, model="bad")
            assert response.status_code == 503
            assert response.json()["error"]["code"] in ("model_not_loaded", "model_failed")
            assert str(tmp_path) not in response.text
        assert served.models()["bad"]["status"] == "failed"
        assert "bad.gguf is damaged" in served.models()["bad"]["error"]
        assert str(tmp_path) not in str(served.models())
        wait_until(lambda: any(f"{bad} is damaged" in line for line in served.log))
        assert "Retry-After" in response.headers
        assert chat(served, max_tokens=4).status_code == 200


def test_a_stop_loses_no_answer(smollm2_path: Path) -> None:
    """After SIGTERM a stream goes on to its end, new requests get 503, and then the server ends with its workers."""
    del smollm2_path
    with serving(MODEL, environment={"OFFGRID_LLAMA_GRACE_SECONDS": "240"}) as served:
        (pid,) = served.worker_pids()
        os.kill(pid, signal.SIGSTOP)  # the stream cannot end before the test goes on
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(chat, served, stream=True, max_tokens=50)
            try:
                wait_until(lambda: served.models()[MODEL]["requests"] == 1)
                os.kill(served.pid, signal.SIGTERM)
                wait_until(lambda: httpx.get(f"{served.url}/health", timeout=10).json()["status"] == "stopping")
                assert chat(served).status_code == 503
            finally:
                os.kill(pid, signal.SIGCONT)
            assert answer.result().text.endswith("data: [DONE]\n\n")
        assert served.process.wait(20) == 0
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_stop_that_takes_too_long(smollm2_path: Path) -> None:
    """A stream that still runs when the time is over is told that the server stops, and no more than that."""
    del smollm2_path
    asked = body(stream=True, max_tokens=5000, ignore_eos=True)
    with serving(MODEL, "--n-ctx", "8192", environment={"OFFGRID_LLAMA_GRACE_SECONDS": "0.1"}) as served:
        with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=asked, timeout=240) as response:
            found = events(response)
            next(found)
            os.kill(served.pid, signal.SIGTERM)
            error = json.loads(list(found)[-1])["error"]
        assert (error["code"], error["message"]) == ("stopping", "the server is stopping")
        assert served.process.wait(60) == 0


def test_workers_end_with_the_server(smollm2_path: Path) -> None:
    """A server that is killed leaves no worker behind."""
    del smollm2_path
    with serving(MODEL) as served:
        pids = served.worker_pids()
        assert pids
        os.kill(served.pid, signal.SIGKILL)
        served.process.wait(20)
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def test_what_a_worker_knows(server: Served) -> None:
    """No secrets of the server's environment, no core files; and libllama is in no process but the workers'."""
    (pid, *_) = server.worker_pids()
    names = {each.partition(b"=")[0] for each in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
    assert b"GGML_NO_BACKTRACE" in names
    assert not [name for name in names if b"KEY" in name or b"TOKEN" in name or b"SECRET" in name]
    limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
    assert next(line for line in limits.splitlines() if "core file" in line).split()[4:6] == ["0", "0"]
    assert "libllama" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    assert "libllama" not in Path(f"/proc/{server.pid}/maps").read_text(encoding="utf-8")

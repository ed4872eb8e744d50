"""The server against clients, workers and files that misbehave: nobody else notices, and nothing is lost."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import MODEL, Served, events, serving, wait_until

ASKED = [{"role": "user", "content": "Tell a long story about a harbour."}]
KEY, OTHER_KEY = "a-key-of-some-length", "another-key-of-some-length"


def body(**options: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 200, **options}


def chat(served: Served, **options: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/chat/completions", json=body(**options), timeout=120)


def test_who_goes_away_frees_the_sequence(server: Served) -> None:
    """A client that is gone in the middle of a stream, or of an answer, stops what it has asked for."""
    address = server.url.removeprefix("http://").split(":")
    cancelled = server.metric("offgrid_llama_engine_generated_tokens_total")
    for stream in (True, False) * 5:
        data = json.dumps(body(stream=stream, max_tokens=2000, min_p=0.1)).encode()
        with socket.create_connection((address[0], int(address[1]))) as client:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            if stream:
                assert client.recv(100)
            else:
                wait_until(lambda: server.models()[MODEL]["requests"] > 0)
        wait_until(lambda: server.models()[MODEL]["requests"] == 0)
    wait_until(lambda: server.metric("offgrid_llama_engine_running") == 0)
    assert server.metric("offgrid_llama_engine_generated_tokens_total") - cancelled < 5000
    assert chat(server, max_tokens=8).status_code == 200


def test_models_that_compute_at_once_share_the_cores(server: Served) -> None:
    """Each has its part of them as long as the other is at work, and all of them by itself."""
    n_cores = len(os.sched_getaffinity(0))
    text = {"model": "gemma-3-270m", "prompt": "Once upon a time", "max_tokens": 1500, "stream": True}
    post = functools.partial(httpx.stream, "POST", timeout=60)
    with post(url=f"{server.url}/v1/completions", json=text) as one:
        pieces = events(one)
        next(pieces)
        assert server.models()["gemma-3-270m"]["threads"] == n_cores
        with post(url=f"{server.url}/v1/chat/completions", json=body(stream=True, max_tokens=100)) as other:
            found = events(other)
            next(found)
            threads = {model["threads"] for model in server.models().values()}
            assert threads == {max(1, n_cores // 2)}
            assert list(found)[-1] == "[DONE]"
    wait_until(lambda: server.models()["gemma-3-270m"]["requests"] == 0)
    assert chat(server, max_tokens=2).status_code == 200
    assert server.models()[MODEL]["threads"] == n_cores


@pytest.fixture(scope="module")
def fragile(smollm2_path: Path, gemma_path: Path) -> Iterator[Served]:
    """A server of this file's own, whose workers may be killed."""
    del smollm2_path, gemma_path
    with serving(MODEL, "gemma-3-270m", "--n-ctx", "16384") as served:
        yield served


def test_a_worker_that_is_killed(fragile: Served) -> None:
    """Its streams get an error at once, those of other models go on, and it is there again."""
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
        chats = [pool.submit(stream, "/v1/chat/completions", body(seed=i, max_tokens=2000)) for i in range(4)]
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
    """It is asked once more after the first, and refused after the second; others are not."""
    wait_until(lambda: fragile.models()[MODEL]["status"] == "ready")

    def kill_when_asked(times: int) -> None:
        for _ in range(times):
            wait_until(
                lambda: fragile.models()[MODEL]["status"] == "ready" and fragile.models()[MODEL]["requests"] > 0, 60
            )
            pid = fragile.models()[MODEL]["pid"]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: pid not in fragile.worker_pids(), 60)  # type: ignore[misc]

    for times, status in ((1, 200), (2, 503)):
        killer = threading.Thread(target=kill_when_asked, args=(times,))
        killer.start()
        assert chat(fragile, max_tokens=150, seed=times).status_code == status
        killer.join()
    refused = chat(fragile, max_tokens=150, seed=2)
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "request_quarantined")
    wait_until(lambda: fragile.models()[MODEL]["status"] == "ready")
    assert chat(fragile, max_tokens=8, seed=3).status_code == 200


def test_models_take_turns_where_memory_is_short(smollm2_path: Path, gemma_path: Path) -> None:
    """With room for one, both are answered, whoever comes when, and no request is lost."""
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
    """Its requests are told why, and come again later; other models answer."""
    del smollm2_path
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    with serving(MODEL, f"bad={bad}") as served:
        for _ in range(3):
            response = chat(served, model="bad")
            assert response.status_code == 503
            assert response.json()["error"]["code"] in ("model_not_loaded", "model_failed")
        assert served.models()["bad"]["status"] == "failed"
        assert "Retry-After" in response.headers
        assert chat(served, max_tokens=4).status_code == 200


def test_keys_and_hosts(smollm2_path: Path, tmp_path: Path) -> None:
    """Without a key nothing but health and the page; another host's name gets nothing; keys see nothing of each other."""
    del smollm2_path
    keys = tmp_path / "keys"
    keys.write_text(f"# two\n{KEY}\n{OTHER_KEY}\n", encoding="utf-8")
    with serving(MODEL, "--api-key-file", str(keys)) as served:
        shown = {"Authorization": f"Bearer {KEY}"}
        url = f"{served.url}/v1/models"
        assert httpx.get(url, timeout=10).status_code == 401
        assert httpx.get(url, timeout=10, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(url, timeout=10, headers=shown).status_code == 200
        assert httpx.get(f"{served.url}/", timeout=10).status_code == 200
        assert httpx.get(f"{served.url}/metrics", timeout=10).status_code == 401
        refused = httpx.get(f"{served.url}/health", timeout=10, headers={"Host": "evil.example"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")

        def cached(key: str, text: str) -> int:
            asked = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": text * 60}]}
            found = httpx.post(
                f"{served.url}/v1/chat/completions", json=asked, timeout=60, headers={"Authorization": f"Bearer {key}"}
            ).json()
            return int(found["usage"]["prompt_tokens_details"]["cached_tokens"])

        cached(KEY, "one two three ")
        assert cached(KEY, "one two three ") > 100
        assert cached(OTHER_KEY, "one two three ") < 16
        assert cached(OTHER_KEY, "one two three ") > 100


def test_other_machines_need_a_key(run_child: Any) -> None:
    """An address that others can reach is refused without one."""
    source = """
        import sys
        from offgrid_llama.cli import main
        sys.argv[1:] = ["serve", "--host", "0.0.0.0"]
        sys.exit(main())
    """
    done = run_child(source)
    assert done.returncode == 2
    assert "insecure" in done.stderr


def test_limits_of_a_request(server: Served) -> None:
    """Too large, too deep, of another type, no JSON, no HTTP: each is refused, and the server goes on."""
    url = f"{server.url}/v1/chat/completions"
    kind = {"Content-Type": "application/json"}
    bodies = {
        "large": (b"x" * (8 * 2**20 + 1), 413), "deep": (b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
        "quite deep": (b'{"messages":' + b"[" * 80 + b"]" * 80 + b"}", 400),
        "NaN": (b'{"messages":[],"temperature":NaN}', 400), "no JSON": (b"{", 400), "no UTF-8": (b'{"model":"\xff"}', 400),
        "nothing": (b"", 400),
    }  # fmt: skip
    for what, (data, status) in bodies.items():
        assert (what, httpx.post(url, content=data, headers=kind, timeout=30).status_code) == (what, status)
    assert httpx.post(url, data={"a": "b"}, timeout=30).status_code == 415
    assert httpx.get(f"{server.url}/nothing", timeout=30).status_code == 404
    assert httpx.get(url, timeout=30).status_code == 405
    assert httpx.get(f"{server.url}/health", headers={"X": "y" * 20_000}, timeout=30).status_code == 431
    for data in (b"\x16\x03\x01\x00", b"GET\r\n\r\n", b"A" * 40_000):
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as raw:
            raw.sendall(data)
            if not data.startswith(b"A"):
                assert raw.recv(100).startswith(b"HTTP/1.1 400")
    assert chat(server, max_tokens=2).status_code == 200


@pytest.fixture(scope="module")
def impatient(smollm2_path: Path) -> Iterator[Served]:
    """A server that waits for nobody, and takes four requests at once."""
    del smollm2_path
    short = {
        "HEADER_SECONDS": "0.5",
        "BODY_SECONDS": "0.5",
        "WRITE_SECONDS": "1",
        "MAX_QUEUE": "4",
        "GRACE_SECONDS": "20",
    }
    with serving(MODEL, environment={f"OFFGRID_LLAMA_{name}": value for name, value in short.items()}) as served:
        yield served


def test_slow_clients(impatient: Served) -> None:
    """Who sends a head or a body too slowly is cut off; so is who reads a stream too slowly, and it ends."""
    host, port = impatient.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc")
        assert slow.recv(10) == b""
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect((host, int(port)))
        endless = {"logit_bias": {"0": -100, "2": -100}}
        data = json.dumps(body(stream=True, max_tokens=3900, n=4, logprobs=True, top_logprobs=20, **endless)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(head + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert slow.recv(10)
        wait_until(lambda: impatient.models()[MODEL]["requests"] == 0, 100)
    assert any("cut off" in line for line in impatient.log)


def test_more_than_there_is_room_for(impatient: Served) -> None:
    """What goes beyond the queue is told to come again; what was taken is answered."""
    with ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(lambda i: chat(impatient, max_tokens=24, seed=i), range(24)))
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 4
    assert all(int(response.headers["Retry-After"]) >= 1 for response in responses if response.status_code == 503)


def test_a_stop_loses_no_answer(smollm2_path: Path) -> None:
    """After SIGTERM a stream goes on to its end, new requests get 503, and then the server ends with its workers."""
    del smollm2_path
    with serving(MODEL) as served:
        pids = served.worker_pids()
        with httpx.stream(
            "POST", f"{served.url}/v1/chat/completions", json=body(stream=True, max_tokens=60), timeout=60
        ) as response:
            found = events(response)
            next(found)
            os.kill(served.pid, signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{served.url}/health", timeout=10).json()["status"] == "stopping")
            assert chat(served).status_code == 503
            assert list(found)[-1] == "[DONE]"
        assert served.process.wait(20) == 0
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


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

"""The server against clients that misbehave: they disconnect, stall, flood it, or have no key."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.clients import KEY, OTHER_KEY, body, chat
from helpers.serving import MODEL, Served, serving, wait_until


def test_a_disconnect_frees_the_sequence(server: Served) -> None:
    """A client that disconnects in the middle of a stream, or of an answer, cancels its request."""
    address = server.url.removeprefix("http://").split(":")
    cancelled = server.metric("offgrid_llama_engine_generated_tokens_total")
    for stream in (True, False) * 5:
        data = json.dumps(body(stream=stream, max_tokens=6000, ignore_eos=True, min_p=0.1)).encode()
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


def test_keys_and_hosts(smollm2_path: Path, tmp_path: Path) -> None:
    """Without a key there is health and the page only; a foreign host name gets nothing; keys share no cached prefix."""
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
    assert httpx.get(f"{server.url}/v1/completions", timeout=30).status_code == 405
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
    """A server with short limits of time, and room for four requests."""
    del smollm2_path
    short = {
        "HEADER_SECONDS": "2",  # the clients of these tests may wait for a core
        "BODY_SECONDS": "2",
        "WRITE_SECONDS": "1",
        "MAX_QUEUE": "4",
        "GRACE_SECONDS": "20",
    }
    with serving(MODEL, environment={f"OFFGRID_LLAMA_{name}": value for name, value in short.items()}) as served:
        yield served


def test_slow_clients(impatient: Served) -> None:
    """A client that sends a head or a body too slowly is cut off, and so is one that stops reading; its request ends."""
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
    wait_until(lambda: any("cut off" in line for line in impatient.log))


def test_more_than_there_is_room_for(impatient: Served) -> None:
    """Requests beyond the queue are told when to retry; those that were accepted are answered."""
    with ThreadPoolExecutor(24) as pool:
        (worker,) = impatient.worker_pids()
        os.kill(worker, signal.SIGSTOP)  # so that none is answered before all have come
        try:
            asked = [pool.submit(chat, impatient, max_tokens=24, seed=i) for i in range(24)]
            wait_until(lambda: impatient.models()[MODEL]["requests"] + sum(each.done() for each in asked) == 24)
        finally:
            os.kill(worker, signal.SIGCONT)
        responses = [each.result() for each in asked]
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 4
    assert all(int(response.headers["Retry-After"]) >= 1 for response in responses if response.status_code == 503)

"""The cost of some attacks on the server's HTTP side, in numbers. It starts its own servers, on this machine.

    python bench/attacks.py [--only lists|connections|readers|bodies]

- lists: one POST of 8 MiB with a list of wrongly typed items, to each path and of each kind: seconds to the answer, how long
  another client waits for /health meanwhile, and how far the memory of the HTTP process rises.
- connections: more connections than the server may have open files, for 10 seconds: lines and bytes of its log, and how long
  another client waits.
- readers: clients that ask for a large answer that is not streamed, and never read it: how many of them the limits count,
  and how many connections are left after four times ``write_seconds``.
- bodies: 40 bodies that each lack 8 bytes: how far the memory of the HTTP process rises, and what the clients are told.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import harness

sys.path.append(str(harness.ROOT / "tests"))

from helpers.serving import MODEL, Served, head, serving
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.json_body import read_json

BODY_BYTES = 8 * 2**20 - 64
ITEMS = {
    "numbers": b"1.5", "texts": b'""', "short texts": b'"ab"', "lists": b"[]", "full lists": b"[1.5]",
    "objects": b'{"a":1}',
}  # fmt: skip
PATHS = {
    "/detokenize": "tokens", "/v1/completions": "prompt", "/v1/embeddings": "input", "/v1/rerank": "documents",
    "/v1/chat/completions": "messages", "/apply-template": "messages",
}  # fmt: skip
WORST = ("seconds", "another client, seconds", "MB")
CONNECTION_SECONDS = 10


def memory(pid: int, what: str = "VmRSS") -> int:
    """Return the memory of a process in bytes, now (VmRSS) or at its highest (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    return 0 if found is None else int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    """Let the highest memory of a process begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


@contextmanager
def another_client(served: Served) -> Iterator[list[float]]:
    """Ask for /health all the time, and collect how long each answer took."""
    waits: list[float] = [0.0]
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            begin = time.perf_counter()
            with suppress(OSError):
                urllib.request.urlopen(f"{served.url}/health", timeout=120).read()
            waits.append(time.perf_counter() - begin)
            time.sleep(0.01)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield waits
    finally:
        ended.set()
        asking.join()


def post(served: Served, path: str, body: bytes) -> int:
    """Return the status of a request."""
    request = urllib.request.Request(f"{served.url}{path}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def lists() -> dict[str, Any]:
    """Send lists of wrongly typed items: of the largest size, and the largest ones whose values are made at all."""
    found: dict[str, dict[str, dict[str, float]]] = {"of the largest size": {}, "the largest that are read": {}}
    with serving(MODEL) as served:
        post(served, "/detokenize", b'{"tokens": [1]}')
        for path, param in PATHS.items():
            for name, item in ITEMS.items():
                if name == "short texts" and param in ("input", "documents", "prompt"):
                    continue  # these are of the right type
                largest = _list(param, item, 16)
                read = next(body for n in range(16, 0, -1) if _is_read(body := _list(param, item, n)))
                for kind, body in zip(found, (largest, read), strict=True):
                    found[kind][f"{path}, {name}"] = _cost(served, path, body)
                    print(kind, path, name, found[kind][f"{path}, {name}"], flush=True)
    return {
        kind: {"cases": len(cases), **{each: max(case[each] for case in cases.values()) for each in WORST}}
        for kind, cases in found.items()
    }


def _list(param: str, item: bytes, sixteenths: int) -> bytes:
    """Return a body with a list of one item, again and again, of this share of the largest size."""
    n = BODY_BYTES * sixteenths // 16 // (len(item) + 1)
    return b'{"%b": [%b]}' % (param.encode(), b",".join([item] * n))


def _is_read(body: bytes) -> bool:
    with suppress(ApiError):
        read_json(body, 64, BODY_BYTES)
        return True
    return False


def _cost(served: Served, path: str, body: bytes) -> dict[str, float]:
    """Return what it costs the server to refuse a body."""
    forget_peak(served.pid)
    before, begin = memory(served.pid), time.perf_counter()
    with another_client(served) as waits:
        status = post(served, path, body)
        took = time.perf_counter() - begin
    risen = memory(served.pid, "VmHWM") - before
    waited = round(max(waits), 2)
    return {"status": status, "seconds": round(took, 2), "another client, seconds": waited, "MB": round(risen / 1e6)}


def connections() -> dict[str, Any]:
    """Open more connections than the server may have files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held: list[socket.socket] = []
    try:
        with serving(MODEL, n_files=256) as served, another_client(served) as waits:
            begin = time.monotonic()
            while time.monotonic() - begin < CONNECTION_SECONDS:
                with suppress(OSError):
                    while len(held) < 400:
                        client = served.connect()
                        client.setblocking(False)
                        held.append(client)
                time.sleep(0.02)
                held = [client for client in held if not _has_ended(client)]
            lines = list(served.log)
            for client in held:
                client.close()
            held = []
        return {
            "seconds": CONNECTION_SECONDS, "lines of the log": len(lines), "bytes of the log": sum(map(len, lines)),
            "another client: answers": len(waits), "another client, seconds": round(max(waits), 2),
        }  # fmt: skip
    finally:
        for client in held:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _has_ended(client: socket.socket) -> bool:
    """Return whether the server has closed a connection, and close it then."""
    try:
        ended = not client.recv(4096)
    except BlockingIOError:
        ended = False
    except OSError:
        ended = True
    if ended:
        client.close()
    return ended


def readers() -> dict[str, Any]:
    """Ask for large answers, and never read them."""
    n, seconds = 20, 2.0
    with serving(MODEL, environment={"OFFGRID_LLAMA_WRITE_SECONDS": str(seconds)}) as served:
        body = json.dumps({"content": "a b c d " * 40_000, "with_pieces": True}).encode()
        clients = [served.connect(receive_bytes=2048) for _ in range(n)]
        for client in clients:
            client.sendall(head("/tokenize", len(body)) + body)
        time.sleep(10)  # the answers are computed
        counted = served.metric("offgrid_llama_requests_active")
        time.sleep(4 * seconds)
        held = sum(not _is_reset(client) for client in clients)
        risen = memory(served.pid)
        for client in clients:
            client.close()
        return {
            "clients": n, "counted": counted, "held in the end": held, "MB of the HTTP process": round(risen / 1e6)
        }  # fmt: skip


def _is_reset(client: socket.socket) -> bool:
    """Return whether the server has cut a connection off; what it had sent is left unread."""
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def bodies() -> dict[str, Any]:
    """Send bodies that each lack their last bytes."""
    n, size = 40, 8 * 2**20
    with serving(MODEL) as served:
        before = memory(served.pid)
        forget_peak(served.pid)
        statuses: Counter[str] = Counter()

        def send() -> None:
            try:
                with served.connect() as client:
                    client.settimeout(10)
                    client.sendall(head("/tokenize", size))
                    data = b" " * (size - 8)
                    client.sendall(data)
                    statuses[client.recv(100).split(b"\r\n")[0].decode()] += 1
            except TimeoutError:
                statuses["no answer within 10 s"] += 1
            except OSError:
                statuses["cut off"] += 1

        sending = [threading.Thread(target=send) for _ in range(n)]
        for each in sending:
            each.start()
        for each in sending:
            each.join()
        return {"bodies": n, "MB": round((memory(served.pid, "VmHWM") - before) / 1e6), "told": dict(statuses)}


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "lists": lists, "connections": connections, "readers": readers, "bodies": bodies
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SECTIONS))
    options = parser.parse_args()
    for name, section in SECTIONS.items():
        if options.only in (None, name):
            print(name, json.dumps(section()), flush=True)


if __name__ == "__main__":
    main()

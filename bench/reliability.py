"""How the server behaves when clients and workers misbehave, in numbers. It starts its own servers, on this machine.

    python bench/reliability.py [--only disconnects|kills|overload|files|short] [--times N] [--seconds N] [--no-write]

- disconnects: 1,000 clients that go away in the middle of a stream: how many steps give a token behind the last one that the
  client had, and milliseconds until /metrics says that the sequence is free.
- kills: `kill -9` of a worker during 64 streams, beside 8 of another model: how long until its streams have their error,
  whether all others end, and how long until it answers again, beside what a load takes.
- overload: ten times as many clients as there is room for, for 10 minutes: what they are told, and how memory goes.
- files: 10,000 mutated GGUF files, half of them models and half LoRA adapters, each loaded by a request: what their clients
  are told, and whether anything else notices.
- short: a million requests of one token, by 16 clients: how the memory of both processes goes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness

sys.path.append(str(harness.ROOT / "tests"))

from helpers.serving import MODEL, Served, serving, wait_until

OTHER = "gemma-3-270m"


def post(served: Served, path: str, body: dict[str, Any], seconds: float = 300) -> tuple[int, str]:
    """Return the status and the whole answer."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{served.url}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def asked(stream: bool = True, **more: Any) -> dict[str, Any]:
    """Return a request for a long answer."""
    message = {"role": "user", "content": "Tell a long story."}
    endless = {"logit_bias": {"0": -100, "2": -100}}
    return {
        "model": MODEL, "messages": [message], "stream": stream, "temperature": 1, "max_tokens": 2000, **endless, **more
    }  # fmt: skip


def disconnects(times: int, _seconds: float) -> dict[str, Any]:
    """Go away in the middle of streams."""
    with settings(engine="{ stream_interval = 0 }") as path, serving("--config", path) as served:
        host, port = served.url.removeprefix("http://").split(":")
        data = json.dumps(asked(logprobs=True)).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        took, steps = [], []
        for i in range(times):
            before = served.metric("offgrid_llama_engine_generated_tokens_total")
            wanted = 2 + i % 20
            with socket.create_connection((host, int(port))) as client:
                client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
                n = 0
                while n < wanted:
                    n += client.recv(65536).count(b'"logprob":')
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            begin = time.perf_counter()
            while served.metric("offgrid_llama_engine_running"):
                time.sleep(0.002)  # polling without a pause takes the model's cores
            took.append(1000 * (time.perf_counter() - begin))
            steps.append(int(served.metric("offgrid_llama_engine_generated_tokens_total") - before - n))
        begin, before = time.perf_counter(), served.metric("offgrid_llama_engine_steps_total")
        post(served, "/v1/chat/completions", asked(stream=False, max_tokens=100))
        step = 1000 * (time.perf_counter() - begin) / (served.metric("offgrid_llama_engine_steps_total") - before)
        cuts = statistics.quantiles(took, n=100)
        return {
            "times": times,
            "steps that gave a token behind the last one that the client had": dict(sorted(Counter(steps).items())),
            "ms until /metrics says that it is free: median": statistics.median(took), "99th percentile": cuts[98],
            "ms of a step": step, "running afterwards": served.metric("offgrid_llama_engine_running"),
            "restarts": served.metric("offgrid_llama_worker_restarts_total"),
        }  # fmt: skip


@contextmanager
def settings(*models: str, engine: str = "{}", **more: str) -> Iterator[str]:
    """Give the path of a file with settings: MODEL, with arguments of its engine, and others, as NAME=FILE[=LORA]."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.toml"
        lines = [f"{name} = {value}" for name, value in more.items()]
        lines += [f"[[models]]\nname = {json.dumps(MODEL)}\nengine = {engine}"]
        for model in models:
            name, *files = model.split("=")
            lines.append(f"[[models]]\nname = {json.dumps(name)}\nmodel = {json.dumps(files[0])}")
            lines += [f"loras = {{ {json.dumps(lora)} = 1 }}" for lora in files[1:]]
        path.write_text("\n".join(lines), encoding="utf-8")
        yield str(path)


def kills(times: int, _seconds: float) -> dict[str, Any]:
    """Kill a worker in the middle of streams."""
    found: dict[str, list[float]] = {"seconds to the error": [], "seconds to ready": [], "seconds of a load": []}
    ended = 0
    for round_ in range(times):
        with serving(MODEL, OTHER, "--n-ctx", "16384") as served:
            post(served, "/v1/completions", {"model": OTHER, "prompt": "a", "max_tokens": 1})
            post(served, f"/models/unload/{MODEL}", {})
            begin = time.perf_counter()
            post(served, f"/models/load/{MODEL}", {})
            found["seconds of a load"].append(time.perf_counter() - begin)
            pid = served.models()[MODEL]["pid"]
            errors: list[float] = []
            killed, begun = [0.0], threading.Barrier(17)  # 8 of each model run; the others wait

            def stream(path: str, body: dict[str, Any], wait: bool, begun: Any = begun, errors: Any = errors,
                       killed: Any = killed) -> str:  # fmt: skip
                data = json.dumps(body).encode()
                request = urllib.request.Request(f"{served.url}{path}", data, {"Content-Type": "application/json"})
                last, n = "", 0
                try:
                    with urllib.request.urlopen(request, timeout=300) as response:
                        for line in response:
                            if line.startswith(b"data: "):
                                last, n = line.decode().strip(), n + 1
                                if n == 3 and wait:
                                    begun.wait(120)
                except urllib.error.HTTPError as error:
                    last = error.read().decode()
                if "error" in last and path.endswith("chat/completions"):
                    errors.append(time.perf_counter() - killed[0])
                return last

            with ThreadPoolExecutor(72) as pool:
                first = [
                    pool.submit(stream, "/v1/chat/completions", asked(seed=i + 100 * round_), True) for i in range(8)
                ]
                text = {"model": OTHER, "prompt": "Once", "max_tokens": 300, "stream": True}
                others = [pool.submit(stream, "/v1/completions", {**text, "seed": i}, True) for i in range(8)]
                time.sleep(0.2)
                waiting = [
                    pool.submit(stream, "/v1/chat/completions", asked(seed=i + 50 + 100 * round_, max_tokens=8), False)
                    for i in range(56)
                ]
                begun.wait(120)
                killed[0] = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: served.models()[MODEL]["status"] != "ready", 10)
                wait_until(lambda: served.models()[MODEL]["status"] == "ready", 60)
                found["seconds to ready"].append(time.perf_counter() - killed[0])
                ended += sum("DONE" in each.result() for each in others)
                if sum("worker_died" in each.result() for each in first) != 8:
                    sys.exit(f"streams of a dead worker: {[each.result() for each in first]}")
                answered = Counter("DONE" in each.result() for each in waiting)
                print(f"  of 56 that waited {answered[True]} were answered", file=sys.stderr)
                found["seconds to the error"].append(max(errors[:8]))
    return {"times": times, "streams of the other model that ended": f"{ended} of {8 * times}"} | {
        name: harness.median_range(values) for name, values in found.items()
    }


def overload(_times: int, seconds: float) -> dict[str, Any]:
    """Ask for ten times as much as there is room for."""
    room = 16
    statuses: Counter[int] = Counter()
    memory: list[tuple[float, float]] = []
    with serving(MODEL, environment={"OFFGRID_LLAMA_MAX_QUEUE": str(room)}) as served:
        end = time.monotonic() + seconds

        def client(number: int) -> None:
            i = 0
            while time.monotonic() < end:
                i += 1
                status, _ = post(
                    served, "/v1/chat/completions", asked(stream=False, max_tokens=24, seed=1000 * number + i)
                )
                statuses[status] += 1
                if status != 200:
                    time.sleep(0.2)

        with ThreadPoolExecutor(10 * room) as pool:
            running = [pool.submit(client, number) for number in range(10 * room)]
            while any(not each.done() for each in running):
                own = int(Path(f"/proc/{served.pid}/statm").read_text(encoding="ascii").split()[1]) * 4096
                memory.append((own, served.metric("offgrid_llama_worker_memory_bytes")))
                time.sleep(1)
            for each in running:
                each.result()
    third = len(memory) // 3

    def grown(which: int) -> str:
        return f"{max(m[which] for m in memory[: 2 * third]):,.0f} to {max(m[which] for m in memory[2 * third :]):,.0f}"

    return {
        "seconds": seconds, "clients": 10 * room, "room": room, "answers by status": dict(statuses),
        "bytes of the HTTP process, in the first two thirds and the last": grown(0), "bytes of the worker": grown(1),
    }  # fmt: skip


def files(times: int, _seconds: float) -> dict[str, Any]:
    """Ask for models whose files, or those of their adapters, are damaged, of two servers at the same time."""
    from helpers.adapters import write_lora
    from helpers.twin import LETTERS, write_tiny_llama

    def kind_of(case: int) -> str:
        return "models" if case // 2 % 2 else "adapters"

    found: dict[str, Counter[str]] = {"models": Counter(), "adapters": Counter()}
    restarts: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        whole, lora = Path(folder) / "whole.gguf", Path(folder) / "lora.gguf"
        weights = write_tiny_llama(whole, more=LETTERS)
        added = write_lora(lora, weights, 0)
        kinds = {
            "models": (whole.read_bytes(), next(iter(weights))),
            "adapters": (lora.read_bytes(), next(iter(added))),
        }
        for case in range(times):
            rng = random.Random(case)
            data, first_tensor = kinds[kind_of(case)]
            bad = bytearray(data)
            head = data.index(first_tensor.encode()) + (2000 if kind_of(case) == "models" else 200)
            for _ in range(rng.randint(1, 4)):
                bad[rng.randrange(head)] = rng.randrange(256)
            (Path(folder) / f"m{case}.gguf").write_bytes(bad)

        def share(first: int) -> None:
            models = [
                f"m{case}={folder}/m{case}.gguf"
                if kind_of(case) == "models"
                else f"m{case}={whole}={folder}/m{case}.gguf"
                for case in range(first, times, 2)
            ]
            with settings(*models, memory_budget="2_000_000_000") as path, serving("--config", path) as served:
                for case in range(first, times, 2):
                    body = {"model": f"m{case}", "prompt": [5, 6], "max_tokens": 2}
                    status, text = post(served, "/v1/completions", body)
                    code = "" if status == 200 else json.loads(text)["error"]["code"]
                    found[kind_of(case)][f"{status} {code}".strip()] += 1
                    if (
                        case // 2 % 50 == 0
                        and post(served, "/v1/chat/completions", asked(False, max_tokens=1))[0] != 200
                    ):
                        sys.exit("another model has noticed")
                restarts.append(served.metric("offgrid_llama_worker_restarts_total"))
                if served.process.poll() is not None:
                    sys.exit("the server has ended")

        with ThreadPoolExecutor(2) as pool:
            for running in [pool.submit(share, first) for first in (0, 1)]:
                running.result()
    answers = {f"answers, {kind}": dict(counts) for kind, counts in found.items()}
    return {"files": times, **answers, "workers that died": sum(restarts)}


def short(times: int, _seconds: float) -> dict[str, Any]:
    """Ask a tiny model very often for one token."""
    from helpers.twin import LETTERS, write_tiny_llama

    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.gguf"
        write_tiny_llama(tiny, more=LETTERS)
        flags = ("--n-ctx", "4096", "--n-threads", "1")
        with serving(f"tiny={tiny}", *flags, environment={"OFFGRID_LLAMA_LOG_FORMAT": "text"}) as served:
            host, port = served.url.removeprefix("http://").split(":")
            pids = {"HTTP process": served.pid, "worker": served.models()["tiny"]["pid"]}
            left, statuses = [times], Counter[bytes]()

            async def client(number: int) -> None:
                reader, writer = await asyncio.open_connection(host, int(port))
                while left[0] > 0:
                    left[0] -= 1
                    prompt = [7 + (number + left[0] // 7**k) % 50 for k in range(4)]
                    body = json.dumps({"prompt": prompt, "max_tokens": 1}).encode()
                    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
                    answer = await reader.readuntil(b"\r\n\r\n")
                    (length,) = re.findall(rb"content-length: (\d+)", answer)
                    await reader.readexactly(int(length))
                    statuses[answer.split()[1]] += 1
                writer.close()

            async def clients() -> None:
                async def look() -> None:
                    at = times
                    while True:
                        if left[0] <= at:
                            at -= times // 10
                            memory.append({name: anonymous(pid) for name, pid in pids.items()})
                        await asyncio.sleep(0.05)

                looking = asyncio.create_task(look())
                await asyncio.gather(*(client(number) for number in range(16)))
                looking.cancel()
                memory.append({name: anonymous(pid) for name, pid in pids.items()})

            memory: list[dict[str, int]] = []
            begin = time.perf_counter()
            asyncio.run(clients())
            taken = time.perf_counter() - begin
    found: dict[str, Any] = {"requests": times, "a second": times / taken}
    found["answers by status"] = {status.decode(): n for status, n in statuses.items()}
    for name in pids:
        kilobytes = [each[name] for each in memory]
        second_half = kilobytes[len(kilobytes) // 2 :]
        slope = statistics.linear_regression(range(len(second_half)), second_half).slope * 1e6 / times
        found[f"kB of the {name}, after each tenth"] = kilobytes
        found[f"kB for each 100,000 requests, by the second half, of the {name}"] = slope
    return found


def anonymous(pid: int) -> int:
    """Return how much of a process' memory is its own, in kB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0])


SECTIONS: dict[str, tuple[Callable[[int, float], dict[str, Any]], int]] = {
    "disconnects": (disconnects, 1000), "kills": (kills, 5), "overload": (overload, 0), "files": (files, 10_000),
    "short": (short, 1_000_000),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--times", type=int)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    found = {}
    for name in [args.only] if args.only else SECTIONS:
        section, usual = SECTIONS[name]
        found[name] = section(args.times or usual, args.seconds) | {"date": harness.environment()["date"]}
        print(json.dumps({name: found[name]}, indent=1))
    path = harness.REPORTS / "reliability.json"
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"results": {}}
    data["results"].update(found)
    data["environment"] = harness.environment()
    rows = [[name, key, json.dumps(value)] for name, each in data["results"].items() for key, value in each.items()]
    body = harness.table(["section", "figure", "seen"], rows)
    harness.report("reliability", "Reliability", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()

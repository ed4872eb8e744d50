#!/usr/bin/env python3
"""The load test: many at once, models that take turns, memory watched. docs/proof/load.py [URL] [--seconds N] [--clients N]

It asks for both of a server's models from several threads, and ends with an error if any request fails, if a stream does not
end in [DONE], or if the memory of the server and its workers goes on growing: between the end of the first third and the end
of the last one by more than a tenth.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import urllib.request
from typing import Any


def post(url: str, body: dict[str, Any]) -> list[str]:
    """Return the lines that come."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return [line.decode().strip() for line in response]


def memory(url: str) -> int:
    """Return the bytes that all workers have."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("offgrid_llama_worker_memory_bytes{")))


def main() -> None:
    """Run the test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:11611")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args()
    with urllib.request.urlopen(f"{args.url}/v1/models", timeout=30) as response:
        names = [model["id"] for model in json.loads(response.read())["data"]]
    counts = dict.fromkeys(names, 0)
    failures: list[str] = []
    lock = threading.Lock()
    end = time.monotonic() + args.seconds

    def client(number: int) -> None:
        i = number
        while time.monotonic() < end and not failures:
            name, stream = names[i % len(names)], i % 3 != 0
            body = {"model": name, "prompt": f"{i}. Once upon a time", "max_tokens": 24, "stream": stream, "seed": i}
            try:
                lines = post(f"{args.url}/v1/completions", body)
                if stream and "data: [DONE]" not in lines:
                    raise ValueError(f"a stream has ended with {lines[-2:]}")
            except Exception as error:
                failures.append(f"{name}: {error!r}")
                return
            with lock:
                counts[name] += 1
            i += 1

    clients = [threading.Thread(target=client, args=(i,)) for i in range(args.clients)]
    for each in clients:
        each.start()
    seen = []
    while any(each.is_alive() for each in clients):
        seen.append(memory(args.url))
        time.sleep(0.5)
    if failures:
        raise SystemExit(f"load test failed: {failures[:3]}")
    third = len(seen) // 3
    early, late = max(seen[: 2 * third] or [0]), max(seen[2 * third :] or [0])
    if third and late > 1.1 * early:
        raise SystemExit(f"load test failed: memory went from {early:,} to {late:,} bytes")
    told = ", ".join(f"{n} of {name}" for name, n in counts.items())
    print(
        f"load test passed: {told} answered in {args.seconds:g} s by {args.clients} clients; memory {late:,} bytes at most"
    )


if __name__ == "__main__":
    main()

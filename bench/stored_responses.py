"""Responses in a file of SQLite: the time to keep one and to find one among many, and the memory that this takes.

python bench/stored_responses.py [--n 10000] [--bytes 4096] [--turns 50]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from offgrid_llama.server.stored_responses.in_sqlite import InSqlite
from offgrid_llama.server.stored_responses.stored_responses import StoredResponses


def response(number: int, text: str, previous: str | None) -> dict[str, Any]:
    output = [{"id": f"msg_{number:032x}0001", "type": "message", "content": [{"type": "output_text", "text": text}]}]
    return {"id": f"resp_{number:032x}", "previous_response_id": previous, "output": output, "status": "completed"}


def rss() -> int:
    """Return the memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if os.path.exists("/proc/self/statm") else 0
    return pages * resource.getpagesize()


async def timed(name: str, n: int, work: Callable[[int], Awaitable[Any]]) -> None:
    seconds = []
    before = rss()
    for i in range(n):
        begin = perf_counter()
        await work(i)
        seconds.append(perf_counter() - begin)
    seconds.sort()
    print(
        f"| {name} | {1e3 * statistics.median(seconds):.3f} | {1e3 * seconds[int(0.99 * n)]:.3f} | "
        f"{1e3 * seconds[-1]:.2f} | {(rss() - before) / 2**20:+.1f} |"
    )


async def main(n: int, n_bytes: int, n_turns: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "responses"
        stored = StoredResponses(InSqlite(path, 2**40, 30 * 86400), 2**40)
        text, items = "word " * (n_bytes // 5), msgspec.json.encode([{"id": "a", "type": "message"}])
        print("| | median, ms | 99 %, ms | worst, ms | memory, MiB |\n|---|--:|--:|--:|--:|")

        async def put(i: int) -> None:
            previous = f"resp_{i - 1:032x}" if i % n_turns else None
            await stored.put("key", response(i, text, previous), items)

        async def get(_: int) -> None:
            await stored.get("key", f"resp_{random.randrange(n):032x}")

        async def context(_: int) -> None:
            last = random.randrange(n // n_turns) * n_turns + n_turns - 1
            await stored.context("key", f"resp_{last:032x}")

        await timed(f"keep one of {n:,}", n, put)
        await timed(f"find one of {n:,}", n, get)
        await timed(f"find one of {n:,}, again", n, get)
        await timed(f"the conversation of {n_turns} turns", 200, context)
        await stored.close()
        print(f"\nThe file has {path.stat().st_size / 2**20:.0f} MiB.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, default in (("--n", 10_000), ("--bytes", 4096), ("--turns", 50)):
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args()
    asyncio.run(main(given.n, given.bytes, given.turns))

"""The server through each API that it speaks, in turn in one run: the same model, process and questions.

    python bench/dialects.py [--pairs 5] [--clients 1 8 16] [--no-write]

Clients on this machine stream a conversation each, 48 tokens for an answer, one after the other until each has had 4. In
each round every API has its turn, and what is told is the ratio to OpenAI's chat completions in the same round.

- speed: tokens a second of all clients together.
- http: the share of one core that the HTTP process takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness

from server import QUESTIONS, SYSTEM, cpu_seconds, end_tokens

sys.path.append(str(harness.ROOT / "tests"))

from helpers.serving import MODEL, Served, serving

N_TOKENS, N_TURNS = 48, 4
OPENAI = "openai"


def _openai(question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "max_tokens": N_TOKENS, "stream": True}


def _responses(question: str) -> dict[str, Any]:
    return {
        "model": MODEL, "instructions": SYSTEM, "input": question, "max_output_tokens": N_TOKENS, "stream": True,
        "store": False,
    }  # fmt: skip


def _anthropic(question: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "system": SYSTEM, "messages": messages, "max_tokens": N_TOKENS, "stream": True}


def _ollama(question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "options": {"num_predict": N_TOKENS}}


def _llama_server(question: str) -> dict[str, Any]:
    return {"prompt": f"{SYSTEM}\nQuestion: {question}\nAnswer:", "n_predict": N_TOKENS, "stream": True}


DIALECTS = {
    OPENAI: ("/v1/chat/completions", _openai), "responses": ("/v1/responses", _responses),
    "anthropic": ("/v1/messages", _anthropic), "ollama": ("/api/chat", _ollama),
    "llama-server": ("/completion", _llama_server),
}  # fmt: skip
"""The path and the body of each, for a question."""


async def ask(served: Served, dialect: str, question: str) -> None:
    """Stream an answer to its end."""
    path, body_of = DIALECTS[dialect]
    body = json.dumps(body_of(question)).encode()
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    n_reads, answer = 0, b""
    while part := await reader.read(65536):
        n_reads, answer = n_reads + 1, answer + part
    writer.close()
    if b" 200 " not in answer[:20] or n_reads < 4:
        sys.exit(f"{dialect} gave no stream: {answer[:1000]!r}")


def load(served: Served, dialect: str, n_clients: int) -> dict[str, float]:
    """Return the tokens a second of clients that ask at once, and the share of a core of the HTTP process."""
    # Questions are of the same length, and no API finds those of another in the cache.
    mark = "ABCDE"[list(DIALECTS).index(dialect)]

    async def client(number: int) -> None:
        for turn in range(N_TURNS):
            at = (number * N_TURNS + turn) % len(QUESTIONS)
            await ask(served, dialect, f"{mark}, {number}.{turn}: Tell me about the {QUESTIONS[at]}.")

    async def together() -> None:
        await asyncio.gather(*(client(number) for number in range(n_clients)))

    asyncio.run(ask(served, dialect, "Good morning!"))
    begin, cpu = time.perf_counter(), cpu_seconds(served.pid)
    asyncio.run(together())
    taken = time.perf_counter() - begin
    return {"speed": n_clients * N_TURNS * N_TOKENS / taken, "cpu": (cpu_seconds(served.pid) - cpu) / taken}


def settings(folder: Path, file: Path) -> Path:
    """Return a file with settings, by which no answer ends early."""
    biases = ", ".join(f'"{token}" = -1e9' for token in end_tokens(file))
    path = folder / "settings.toml"
    path.write_text(
        f'[[models]]\nname = "{MODEL}"\nn_parallel = 16\nn_ctx = 16384\n'
        f"sampling = {{ temperature = 0, logit_bias = {{ {biases} }} }}\n",
        encoding="utf-8",
    )
    return path


def row(samples: Mapping[str, Sequence[dict[str, float]]], dialect: str, n: str) -> tuple[list[object], list[str]]:
    """Return a row of the table, and its verdicts."""
    ratios = [own["speed"] / base["speed"] for own, base in zip(samples[dialect], samples[OPENAI], strict=True)]
    speed, cpu = harness.median_range(ratios), harness.median_range([each["cpu"] for each in samples[dialect]])
    text = "{median:.3f} ({min:.3f} to {max:.3f})"
    verdicts = []
    if n == "16":
        held = cpu["median"] <= 0.15
        verdicts.append(harness.verdict(f"{dialect}, the HTTP process: {cpu['median']:.3f}, at most 0.15 asked", held))
    elif dialect != OPENAI:
        held = speed["median"] >= 0.98
        verdicts.append(harness.verdict(f"{dialect}, {n} clients: {speed['median']:.3f}, at least 0.98 asked", held))
    return [dialect, n, text.format(**speed), "{median:.3f}".format(**cpu), len(ratios)], verdicts


def main() -> None:
    parser = harness.parser(__doc__, "--no-write")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 16])
    args = parser.parse_args()
    file = harness.resolve([])[MODEL]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, serving("--config", str(settings(Path(folder), file))) as served:
        for n in args.clients:
            samples, quiet = harness.in_turn(list(DIALECTS), args.pairs, lambda each, n=n: load(served, each, n))  # type: ignore[misc]
            results[str(n)] = {"samples": samples, "quiet": quiet}
            print(n, {each: samples[each][-1] for each in DIALECTS}, file=sys.stderr)
    rows, verdicts = [], []
    for n, found in results.items():
        for dialect in DIALECTS:
            cells, told = row(found["samples"], dialect, n)
            rows.append(cells)
            verdicts += told
    head = ["API", "clients", "tokens/s, to OpenAI's (range)", "HTTP process, of one core", "rounds"]
    body = harness.table(head, rows) + "\n\n## Figures to hold\n\n" + "\n".join(verdicts)
    about = harness.environment() | {"threads": os.cpu_count()}
    harness.report("dialects", "The APIs", {"environment": about, "results": results}, body, write=not args.no_write)


if __name__ == "__main__":
    main()

"""The server against llama-server and llama-cpp-python's, in turn in one run: the same file, threads and libllama.

    python bench/server.py [--pairs 5] [--clients 1 8 16] [--threads N] [--model NAME=FILE] [--no-write]

Every sample is a fresh server with a model that is loaded and warm, and clients on this machine that stream a conversation
each, `/v1/chat/completions` with 48 tokens for each answer, one after the other until each has had 4: a system prompt of
some 150 tokens that all share, and a question of their own. The two of each pair ask the same. A model without a chat
template is asked for `/v1/completions` with the same text.

- 1, 8 and 16 clients: tokens a second of all together, from the first question to the last answer; and the 95th percentile
  of the time to the first token.
- http: the share of one core that our HTTP process takes while 16 clients stream.
- start: seconds from the command to the first answer of one token, model in the file cache.

llama-cpp-python's `llama_cpp.server` serves one request at a time and cuts one off where another comes; it is measured with
`interrupt_requests` off, so that it does not lose answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import harness
from peers import Peers

OURS, LLAMA_SERVER, PYTHON = "offgrid_llama", "llama-server", "llama_cpp.server"
N_TOKENS, N_TURNS, N_PARALLEL, N_CTX_EACH = 48, 4, 16, 1024
SYSTEM = (
    "You are the assistant of a small harbour town's tourist office. You answer in full sentences, you are friendly, and "
    "you never say more than you know. The town has a lighthouse, which is open on Sundays from ten to four, a market hall "
    "with bread, onions and smoked fish, a ferry to the island at nine and at two that takes twenty minutes, and a museum "
    "of ropes and knots in the old net loft. The train from the capital takes two hours and comes five times a day. Dogs "
    "are welcome on the beach before eight in the morning and after six in the evening. The best month to come is June, "
    "when the lupins are out; in November it rains. The hotel at the quay has twelve rooms and a cat that is called Admiral."
)
_TEXT = re.compile(rb'"(content|text)": ?"(?!")')
QUESTIONS = ("lighthouse", "market", "ferry", "museum", "train", "beach", "weather", "hotel", "cat", "island")


class Server:
    """A server's process, and how it is asked.

    Args:
        side: whose.
        file: the model.
        chat: whether it has a template.
        threads: of the model.
        peers: where the others are.
    """

    def __init__(self, side: str, file: Path, chat: bool, threads: int, peers: Peers) -> None:
        self.side, self.file, self.chat, self.threads, self.peers = side, file, chat, threads, peers
        self.port = 0
        self.pid = 0
        self.started = 0.0

    def command(self) -> list[str | Path]:
        """Return how it is started."""
        n_ctx, t = N_PARALLEL * N_CTX_EACH, str(self.threads)
        if self.side == OURS:
            flags = f"--n-ctx {n_ctx} --n-parallel {N_PARALLEL} --n-threads {t} --port {self.port}"
            return [sys.executable, "-m", "offgrid_llama.cli", "serve", f"model={self.file}", *flags.split()]
        if self.side == LLAMA_SERVER:
            flags = f"-t {t} -c {n_ctx} -np {N_PARALLEL} -b 2048 -ub 512 -fa on --port {self.port} --no-webui"
            return [self.peers.bin / "llama-server", "-m", self.file, *flags.split()]
        flags = (
            f"--n_ctx {N_CTX_EACH} --n_threads {t} --n_threads_batch {t} --flash_attn true --interrupt_requests false "
            f"--host 127.0.0.1 --port {self.port} --verbose false"
        )
        return [sys.executable, "-m", "llama_cpp.server", "--model", str(self.file), *flags.split()]

    @contextmanager
    def run(self) -> Iterator[Server]:
        """Run it until the block ends; it listens and its model is loaded when that begins."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.started = time.perf_counter()
        env = self.peers.environment() | {"OFFGRID_LLAMA_CACHE": os.environ.get("OFFGRID_LLAMA_CACHE", "")}
        env = {name: value for name, value in env.items() if value}
        process = subprocess.Popen(self.command(), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pid = process.pid
        try:
            while asyncio.run(self._status()) != 200:
                if process.poll() is not None:
                    sys.exit(f"{self.side} ended with {process.returncode}")
                time.sleep(0.01)
            yield self
        finally:
            process.terminate()
            process.wait()

    async def _status(self) -> int:
        path = "/v1/models" if self.side == PYTHON else "/health"
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            line = await reader.readline()
            writer.close()
            return int(line.split()[1]) if line else 0
        except (OSError, IndexError):
            return 0

    async def ask(self, question: str, n_tokens: int) -> tuple[float, list[float]]:
        """Stream an answer; return when it was asked for, and when each piece came."""
        options: dict[str, Any] = {
            "model": "model", "max_tokens": n_tokens, "temperature": 0, "stream": True,
            # An answer that ends early has fewer tokens, so none may end by itself.
            "logit_bias": {str(token): -100 for token in self.ends},
        }  # fmt: skip
        if self.chat:
            path = "/v1/chat/completions"
            options["messages"] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        else:
            path = "/v1/completions"
            options["prompt"] = f"{SYSTEM}\nQuestion: {question}\nAnswer:"
        if self.side == LLAMA_SERVER:
            options |= {"ignore_eos": True, "cache_prompt": True, "logit_bias": []}
        body = json.dumps(options).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        begin = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode() + body)
        times = []
        while line := await reader.readline():
            if line.startswith(b"data: {") and _TEXT.search(line):
                times.append(time.perf_counter())
        writer.close()
        if not times:
            sys.exit(f"{self.side} gave no answer")
        return begin, times

    ends: Sequence[int] = ()


def end_tokens(file: Path) -> list[int]:
    """Return the tokens that end a text."""
    import offgrid_llama as og

    with og.Model(file, vocab_only=True) as model:
        return sorted(model.vocab.eog_tokens())


def load(server: Server, n_clients: int) -> dict[str, float]:
    """Return the speed and times of clients that ask at once."""
    firsts: list[float] = []
    counts: list[int] = []

    async def client(number: int) -> None:
        for turn in range(N_TURNS):
            at = (number * N_TURNS + turn) % len(QUESTIONS)
            begin, times = await server.ask(f"{number}.{turn}: Tell me about the {QUESTIONS[at]}.", N_TOKENS)
            firsts.append(times[0] - begin)
            counts.append(N_TOKENS)

    async def together() -> float:
        await server.ask("Good morning!", 8)
        begin = time.perf_counter()
        cpu = cpu_seconds(server.pid)
        await asyncio.gather(*(client(number) for number in range(n_clients)))
        taken = time.perf_counter() - begin
        shares.append((cpu_seconds(server.pid) - cpu) / taken)
        return taken

    shares: list[float] = []
    taken = asyncio.run(together())
    cuts = statistics.quantiles(firsts, n=20, method="inclusive") if len(firsts) > 1 else firsts
    return {
        "speed": sum(counts) / taken,
        "first": cuts[-1],
        "first_median": statistics.median(firsts),
        "cpu": shares[0],
    }


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_to_answer(server: Server) -> float:
    """Return the seconds from the command to the end of the first answer; the server runs."""
    asyncio.run(server.ask("Hello!", 1))
    return time.perf_counter() - server.started


def main() -> None:
    parser = harness.parser(__doc__, "--threads", "--model", "--peers", "--no-write")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 16])
    args: argparse.Namespace = parser.parse_args()
    peers = Peers(args.peers.resolve())
    peers.check()
    path = harness.REPORTS / "server.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    now = harness.environment()
    for model, file in harness.resolve(args.model).items():
        chat = "gemma-3-270m" not in model
        ends = end_tokens(file)

        def take(side: str, n: int, file: Path = file, chat: bool = chat, ends: list[int] = ends) -> Any:
            server = Server(side, file, chat, args.threads, peers)
            server.ends = ends
            with server.run():
                begun = start_to_answer(server)
                found = load(server, n) | {"start": begun}
            print(f"  {side}, {n}: {found}", file=sys.stderr)
            return found

        for n in args.clients:
            sides = (OURS, LLAMA_SERVER) if n == 1 else (OURS, LLAMA_SERVER, PYTHON)
            samples, quiet = harness.in_turn(sides, args.pairs, partial(_flipped, take, n))
            results.setdefault(model, {})[str(n)] = {"samples": samples, "quiet": quiet, "date": now["date"]}
    rows, verdicts = [], []
    for model, by_clients in results.items():
        for n, found in by_clients.items():
            for name, ratio, limit, low in figures(int(n), found["samples"]):
                held = ratio["median"] <= limit if low else ratio["median"] >= limit
                asked = f"at {'most' if low else 'least'} {limit}"
                seen = "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
                rows.append([model, name, seen, asked, f"{len(found['samples'][OURS])}, {found['date']}"])
                verdicts.append(harness.verdict(f"{model}, {name}: {ratio['median']:.3f}, {asked} asked", held))
    body = harness.table(["model", "figure", "median of pairs (range)", "asked", "pairs, when"], rows)
    body += "\n\n## Figures to hold\n\n" + "\n".join(verdicts)
    about = now | {"threads": args.threads}
    harness.report("server", "The server", {"environment": about, "results": results}, body, write=not args.no_write)


def figures(n: int, samples: dict[str, list[Any]]) -> list[tuple[str, dict[str, float], float, bool]]:
    """Return the figures of ``n`` clients: the name, what was seen, the limit, and whether that is the most."""
    clients = "1 client" if n == 1 else f"{n} clients"
    speed = _ratio(samples, "speed", LLAMA_SERVER)
    if n == 1:
        return [
            (f"{clients}: tokens/s, to llama-server", speed, 0.97, False),
            ("start to the first answer, to llama-server", _ratio(samples, "start", LLAMA_SERVER), 1.3, True),
        ]
    first = _ratio(samples, "first", LLAMA_SERVER)
    found = [
        (f"{clients}: tokens/s, to llama-server", speed, 1.1, False),
        (f"{clients}: tokens/s, to llama_cpp.server", _ratio(samples, "speed", PYTHON), 2.5, False),
        (f"{clients}: 95th percentile of the first token, to llama-server", first, 0.5, True),
    ]
    if n == 16:
        cpu = harness.median_range([each["cpu"] for each in samples[OURS]])
        found.append((f"{clients}: the HTTP process, of one core", cpu, 0.15, True))
    return found


def _ratio(samples: dict[str, list[Any]], key: str, other: str) -> dict[str, float]:
    return harness.ratios([each[key] for each in samples[OURS]], [each[key] for each in samples[other]])


def _flipped(take: Callable[[str, int], Any], n: int, side: str) -> Any:
    return take(side, n)


if __name__ == "__main__":
    main()

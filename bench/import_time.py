"""The cost of `import offgrid_llama`, beside `import numpy` and `import llama_cpp`, and which modules it brings along.

    python bench/import_time.py [--rounds 15] [--no-write]

Every sample is a fresh interpreter that times its one import; the modules take turns. One round beforehand, not
counted, writes the bytecode and fills the file cache.
"""

from __future__ import annotations

import sys

import harness
from peers import Peers

MODULES = ("numpy", "offgrid_llama", "llama_cpp")
LIMIT_MS = 40
# Never: the engine's, the chat's, the command line's and the server's dependencies.
FORBIDDEN = (
    "jinja2", "llguidance", "rich", "typer", "click", "fastapi", "starlette", "uvicorn", "msgspec", "pydantic",
    "prometheus_client", "huggingface_hub", "requests", "httpx",
)  # fmt: skip
HEAVY = (
    *FORBIDDEN, "numpy", "asyncio", "ctypes", "multiprocessing", "concurrent.futures", "email", "http", "ssl",
    "urllib.request", "sqlite3", "unittest", "importlib.metadata", "logging", "inspect", "cffi", "filelock",
)  # fmt: skip
CHILD = """
import json, sys, time
before, start = set(sys.modules), time.perf_counter_ns()
import {module}
taken = time.perf_counter_ns() - start
print(json.dumps({{"ms": taken / 1e6, "modules": sorted(set(sys.modules) - before)}}))
"""


def main() -> None:
    parser = harness.parser(__doc__, "--peers", "--no-write")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()

    peers, about = Peers(args.peers.resolve()), harness.environment()
    peers.check()
    env = peers.environment()
    about["rounds"] = args.rounds
    brought: dict[str, list[str]] = {}

    def take(module: str) -> float:
        found = harness.run_json([sys.executable, "-c", CHILD.format(module=module)], env)
        brought[module] = found["modules"]
        return float(found["ms"])

    harness.in_turn(MODULES, 1, take, patience=0)
    samples, about["quiet"] = harness.in_turn(MODULES, args.rounds, take)
    ms = {module: harness.median_range(values) for module, values in samples.items()}
    heavy = {module: [name for name in HEAVY if name in names] for module, names in brought.items()}
    rows = []
    for module, names in heavy.items():
        took = "{median:.0f} ({min:.0f} to {max:.0f})".format(**ms[module])
        rows.append([module, took, len(brought[module]), ", ".join(names)])
    more = ms["offgrid_llama"]["median"] - ms["numpy"]["median"]
    never = [name for name in FORBIDDEN if name in brought["offgrid_llama"]]
    body = "\n".join([
        harness.table(["import", "ms, median (range)", "modules", "among them"], rows),
        "\n## Figures to hold\n",
        harness.verdict(f"offgrid_llama takes {more:+.0f} ms to numpy, at most +{LIMIT_MS} asked", more <= LIMIT_MS),
        harness.verdict(f"brings none of {', '.join(FORBIDDEN)}; found: {', '.join(never) or 'none'}", not never),
    ])  # fmt: skip
    results = {"ms": ms, "heavy": heavy, "more_than_numpy_ms": more}
    data = {"environment": about, "samples_ms": samples, "results": results}
    harness.report("import_time", "The cost of an import", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()

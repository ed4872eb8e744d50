"""Long texts through every vocabulary: 16 MiB of many kinds mixed, and runs of a million characters of one kind.

    python bench/tokenizer_limits.py [--vocabulary NAME ...] [--text NAME ...] [--timeout 120] [--no-write]

Every text goes through every vocabulary of llama.cpp's repository, and those of the two models of the store, each in a
process of its own, so that a crash is seen as one. Tokens, or a TokenizeError that names the limit, are a success; a
crash, a wrong exception or more than `--timeout` seconds is a failure. The texts are made by tests/helpers/texts.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness

sys.path.append(str(harness.ROOT / "tests"))

from helpers.texts import mixed, runs

MIXED_MIB, RUN = 16, 1_000_000


def texts() -> dict[str, bytes]:
    """Return the texts by name."""
    return {"mixed": mixed(MIXED_MIB << 20), **runs(RUN)}


def child(file: str, name: str) -> dict[str, Any]:
    """Tokenize one text and return how long it took, or which error it was."""
    import resource

    import offgrid_llama as og

    text = texts()[name]
    with og.Model(file, vocab_only=True) as model:
        start = time.perf_counter()
        try:
            count = len(model.vocab.tokenize(text, add_special=False))
        except og.TokenizeError as error:
            return {"refused": error.message, "seconds": time.perf_counter() - start}
        seconds = time.perf_counter() - start
        return {
            "tokens": count,
            "seconds": seconds,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }


def attempt(command: list[str | Path], timeout: float) -> dict[str, Any]:
    """Run a child and return what it printed, or how it died."""
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"over {timeout:.0f} s"}
    if done.returncode:
        return {"failed": f"ended with {done.returncode}: {done.stderr.strip()[-200:]}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cell(found: dict[str, Any]) -> str:
    """Return one cell of the report."""
    if "failed" in found:
        return f"**{found['failed'][:20]}**"
    return "refused" if "refused" in found else f"{found['seconds']:.1f} s"


def main() -> None:
    parser = harness.parser(__doc__, "--no-write")
    parser.add_argument("--vocabulary", action="append", default=[], help="only these")
    parser.add_argument("--text", action="append", default=[], help="only these")
    parser.add_argument("--timeout", type=float, default=120)
    parser.add_argument("--child", nargs=2, metavar=("FILE", "TEXT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*args.child)), flush=True)
        return

    files = {
        path.stem.removeprefix("ggml-vocab-"): path
        for path in sorted((harness.ROOT / "vendor/llama.cpp/models").glob("ggml-vocab-*.gguf"))
    }
    files |= harness.resolve([])
    about = harness.environment() | {"mixed text, MiB": MIXED_MIB, "characters of a run": RUN}
    sizes = {name: len(text) for name, text in texts().items()}
    results: dict[str, dict[str, Any]] = {}
    for vocabulary, file in files.items():
        if args.vocabulary and vocabulary not in args.vocabulary:
            continue
        for name in args.text or sizes:
            command = [sys.executable, Path(__file__), "--child", file, name]
            found = results.setdefault(vocabulary, {})[name] = attempt(command, args.timeout)
            print(f"{vocabulary}, {name}: {found}", file=sys.stderr, flush=True)

    rows = [
        [name, f"{sizes[name]:,}", *(cell(found[name]) for found in results.values())] for name in args.text or sizes
    ]
    every = [found for by_text in results.values() for found in by_text.values()]
    failed = [found for found in every if "failed" in found]
    errors = sorted({re.sub(r"has [\d,]+", "has N", found["refused"]) for found in every if "refused" in found})
    body = harness.table(["text", "bytes", *results], rows) + "\n\nMessages of the refusals:\n\n"
    body += "".join(f"- {error}\n" for error in errors) + "\n## Figures to hold\n\n"
    body += harness.verdict(f"{len(every)} texts gave tokens or a TokenizeError, {len(failed)} did not", not failed)
    data = {"environment": about, "results": results}
    harness.report("tokenizer_limits", "Long texts through every vocabulary", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()

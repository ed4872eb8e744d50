"""The memory that models and contexts take, and whether it comes back.

    python bench/memory.py [--cycles 1000] [--model NAME[=FILE]]... [--no-write]

Each model gets fresh processes of its own:
- loading: how much of the resident size is the mapped file, and how much is the process's own. Weights that llama.cpp
  repacks for the CPU are copies, so the same is shown with `use_extra_bufts=False`;
- sharing: how much a second context on the same model adds, weights not among it;
- cycles: open, decode and close, with the resident size after each hundredth. The first tenth is warm-up. glibc keeps
  freed memory and gives the top of its heap back now and then, a few MB at a time; it is told to do so before each look,
  so that what is seen is what is held.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness

if TYPE_CHECKING:
    import offgrid_llama

LIMIT_MB = 2.0
N_CTX = 256


def resident() -> dict[str, float]:
    """Return this process's resident size in MB: all of it, anonymous memory, and mapped files."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return {key: int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) / 1024 for key in ("VmRSS", "RssAnon", "RssFile")}  # type: ignore[index]


def mapped(file: str) -> float:
    """Return how many MB of the file are resident in this process through mmap."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(Path(file).resolve()))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total / 1024


def decode_one(ctx: offgrid_llama.Context) -> None:
    """Decode one token, so that everything lazy is there."""
    import offgrid_llama as og

    batch = og.Batch(1)
    batch.add(1000, 0, [0], logits=True)
    ctx.decode(batch)


def child_sharing(file: str, use_extra_bufts: bool) -> dict[str, Any]:
    """Load a model, then open a context on it, and a second one."""
    import offgrid_llama as og

    steps = {"import": resident()}
    with og.Model(file, use_extra_bufts=use_extra_bufts) as model:
        steps["model"] = resident()
        with og.Context(model, n_ctx=N_CTX, n_batch=64) as first:
            decode_one(first)
            steps["first context"] = resident()
            with og.Context(model, n_ctx=N_CTX, n_batch=64) as second:
                decode_one(second)
                steps["second context"] = resident()
                in_file = mapped(file)
    steps["closed"] = resident()
    return {"steps": steps, "mapped": in_file}


def child_cycles(file: str, cycles: int) -> list[float]:
    """Open, decode and close again and again; return the resident size in MB at each hundredth of the way."""
    import offgrid_llama as og

    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _pad: 0)
    seen, every = [], max(1, cycles // 100)
    for i in range(cycles):
        with og.Model(file) as model, og.Context(model, n_ctx=N_CTX, n_batch=64) as ctx:
            decode_one(ctx)
        if (i + 1) % every == 0:
            trim(0)
            seen.append(resident()["VmRSS"])
    return seen


def main() -> None:
    parser = harness.parser(__doc__, "--model", "--no-write")
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--child", choices=["sharing", "sharing-plain", "cycles"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        file = args.model[0]
        cycling = args.child == "cycles"
        print(json.dumps(child_cycles(file, args.cycles) if cycling else child_sharing(file, args.child == "sharing")))
        return

    results: dict[str, Any] = {}
    parts, verdicts = [], []
    for name, path in harness.resolve(args.model).items():
        size = path.stat().st_size / 2**20
        command: list[str | Path] = [
            sys.executable,
            Path(__file__),
            "--model",
            path,
            "--cycles",
            str(args.cycles),
            "--child",
        ]
        rows, measured = [], {}
        for kind, text in (("sharing", "repacked"), ("sharing-plain", "use_extra_bufts=False")):
            found = measured[kind] = harness.run_json([*command, kind], os.environ)
            rows += [[text, step, *(f"{mb:.1f}" for mb in seen.values())] for step, seen in found["steps"].items()]
            rows.append([text, "of this the model's file", f"{found['mapped']:.1f}", "", ""])
        cycles = harness.run_json([*command, "cycles"], os.environ)
        steady = cycles[max(1, len(cycles) // 10) :]
        moved, drift = max(steady) - min(steady), steady[-1] - steady[0]
        results[name] = {"file_mb": size, **measured, "cycles_mb": cycles, "moved_mb": moved, "drift_mb": drift}

        parts.append(f"## {name}, a file of {size:.1f} MB\n")
        parts.append(harness.table(["weights", "after", "resident, MB", "anonymous", "files"], rows) + "\n")
        span = f"{min(steady):.1f} to {max(steady):.1f} MB"
        parts.append(f"{args.cycles} cycles: resident {span}, from start to end {drift:+.2f}.\n")
        plain = measured["sharing-plain"]
        own = plain["steps"]["model"]["RssAnon"] - plain["steps"]["import"]["RssAnon"]
        second = plain["steps"]["second context"]["VmRSS"] - plain["steps"]["first context"]["VmRSS"]
        verdicts += [
            harness.verdict(
                f"{name}: {plain['mapped']:.0f} MB of {size:.0f} are mapped, {own:.0f} MB more is its own",
                plain["mapped"] > 0.95 * size,
            ),
            harness.verdict(f"{name}: a second context adds {second:.1f} MB", second < size / 5),
            harness.verdict(f"{name}: {args.cycles} cycles move {moved:.2f} MB, 2 MB at most asked", moved < LIMIT_MB),
        ]
    data = {"environment": {**harness.environment(), "n_ctx": N_CTX, "cycles": args.cycles}, "results": results}
    body = "\n".join([*parts, "## Figures to hold\n", *verdicts])
    harness.report("memory", "Memory", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()

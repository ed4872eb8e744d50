"""The parts that all benchmarks share: fresh processes in turn, medians, the machine's description, and the report files."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "docs/benchmarks"
DISTURBED = 0.1
MODELS = ("smollm2-135m-instruct", "gemma-3-270m")

_T = TypeVar("_T")

_OPTIONS: dict[str, dict[str, Any]] = {
    "--threads": {"type": int, "default": os.cpu_count() or 1},
    "--model": {"action": "append", "default": [], "metavar": "NAME[=FILE]"},
    "--peers": {"type": Path, "default": ROOT / "build/peers"},
    "--no-write": {"action": "store_true", "help": "print only, leave docs/benchmarks as it is"},
}


def parser(doc: str | None, *options: str) -> argparse.ArgumentParser:
    """Return a parser with the script's docstring as help, and those of the shared options that it names."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in options:
        made.add_argument(option, **_OPTIONS[option])
    return made


def in_turn(
    sides: Sequence[str], rounds: int, take: Callable[[str], _T], patience: int = 3
) -> tuple[dict[str, list[_T]], dict[str, float]]:
    """Take one sample of each side in each round; return the samples, and how quiet the machine was.

    Each round starts with the next side. A round in which other processes took more than `DISTURBED` of the machine is
    taken again, without a look at its samples, up to `patience` times the number of rounds.
    """
    samples: dict[str, list[_T]] = {side: [] for side in sides}
    shares: list[float] = []
    repeated = 0
    while len(shares) < rounds:
        start = len(shares) % len(sides)
        watch = time.perf_counter(), _busy_seconds(), _own_seconds()
        found = {side: take(side) for side in [*sides[start:], *sides[:start]]}
        taken, busy, own = time.perf_counter() - watch[0], _busy_seconds() - watch[1], _own_seconds() - watch[2]
        share = max(0.0, (busy - own) / (taken * (os.cpu_count() or 1)))
        if share > DISTURBED and repeated < patience * rounds:
            repeated += 1
            print(f"other processes had {share:.0%} of the CPUs: this round is taken again", file=sys.stderr)
            continue
        shares.append(share)
        for side, value in found.items():
            samples[side].append(value)
    return samples, {"other processes, largest share of the CPUs": round(max(shares), 3), "rounds repeated": repeated}


def _busy_seconds() -> float:
    """Return the CPU seconds that all processes have used, and those that a hypervisor took."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (
        int(field) for field in Path("/proc/stat").read_text(encoding="utf-8").split(maxsplit=11)[1:11]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Return the CPU seconds of this process, of its children that have ended, and of all below it that run."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system + _descendants_seconds()


def _descendants_seconds() -> float:
    """Return the CPU seconds of the processes below this one that run, and of their children that have ended."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
            ticks[int(stat.parent.name)] = sum(map(int, fields[11:15]))
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sum(ticks[pid] for pid in below - {os.getpid()}) / os.sysconf("SC_CLK_TCK")


def rotated(sides: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield (round, side); each round starts one side later, so that a machine that drifts favours none."""
    for i in range(rounds):
        start = i % len(sides)
        yield from ((i, side) for side in [*sides[start:], *sides[:start]])


def run_json(command: Sequence[str | Path], env: Mapping[str, str]) -> Any:
    """Run a fresh process and return the JSON that it prints."""
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def run_child(script: str, file: Path, rounds: int, env: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Run both sides of a script in one fresh process; return what it took, and the digests of the libraries it had.

    Exits if more than one libllama was loaded: the sides would not be on the same.
    """
    command: list[str | Path] = [sys.executable, script, "--child", "--model", file, "--rounds", str(rounds)]
    found = run_json(command, env)
    inodes = list(found["libraries"].values())
    if len(set(inodes)) != len(inodes) or sum("libllama" in Path(path).name for path in found["libraries"]) != 1:
        sys.exit(f"more than one libllama is loaded: {found['libraries']}")
    return found["samples"], digests(list(found["libraries"]))


def libraries(pid: int | str = "self") -> dict[str, str]:
    """Return the files of libllama and libggml that a process has mapped, by real path, each with its inode."""
    found = {}
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and Path(fields[5]).name.startswith(("libllama.so", "libggml")):
            found[fields[5]] = f"{fields[3]}:{fields[4]}"
    return dict(sorted(found.items()))


def digests(paths: Sequence[str]) -> dict[str, str]:
    """Return the file names, without folders, with the start of each file's sha256."""
    return {Path(path).name: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in paths}


def median_range(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the smallest and the largest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return median and range of the ratios within each pair."""
    return median_range([a / b for a, b in zip(ours, theirs, strict=True)])


def environment() -> dict[str, Any]:
    """Describe the machine and the versions, with no path and no host name."""
    import numpy

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    commit = subprocess.run(
        ["git", "-C", ROOT / "vendor/llama.cpp", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "llama.cpp": commit,
        "llama-cpp-python": "0.3.36",
    }


def resolve(pairs: Sequence[str]) -> dict[str, Path]:
    """Turn the `--model` options, NAME or NAME=FILE, into files; with none, take both models from the store."""
    from offgrid_llama import store

    found = {}
    for pair in pairs or MODELS:
        name, _, file = pair.partition("=")
        found[name] = Path(file) if file else Path(store.resolve(name))
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, padded so that it reads well in a terminal too."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def verdict(text: str, held: bool) -> str:
    """Return one line of the report's last part: a figure to hold, and whether it was."""
    return f"- {'held' if held else '**MISSED**'}: {text}"


def report(name: str, title: str, data: Mapping[str, Any], body: str, write: bool = True) -> None:
    """Print the report, and write it as Markdown and JSON to docs/benchmarks."""
    about = "\n".join(f"- {key}: {value}" for key, value in data["environment"].items())
    made = f"Made by `python bench/{name}.py`; the raw samples are in `{name}.json`."
    text = f"# {title}\n\n{made}\n\n{body}\n\n## Where and with what\n\n{about}\n"
    print(text)
    if write:
        REPORTS.mkdir(parents=True, exist_ok=True)
        (REPORTS / f"{name}.md").write_text(text, encoding="utf-8")
        (REPORTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def plot_ratios(name: str, title: str, rows: Sequence[tuple[str, Sequence[float], float, bool]]) -> None:
    """Write docs/benchmarks/NAME.svg: of each row its name, the ratios of its pairs, and the most or least asked for."""
    mpl: Any = importlib.import_module("matplotlib")
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = name  # so that the same samples give the same file
    plt: Any = importlib.import_module("matplotlib.pyplot")

    figure, axes = plt.subplots(figsize=(10, 1 + 0.32 * len(rows)))
    for y, (_, pairs, asked, at_most) in enumerate(reversed(rows)):
        median = statistics.median(pairs)
        held = median <= asked if at_most else median >= asked
        colour = "tab:green" if held else "tab:red"
        axes.plot(pairs, [y] * len(pairs), "o", color=colour, alpha=0.4, markersize=4)
        axes.plot([median], [y], "|", color=colour, markersize=14, markeredgewidth=3)
        axes.plot([asked], [y], ">" if not at_most else "<", color="black", markersize=6)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_xscale("log")
    axes.axvline(1.0, color="grey", linewidth=0.5)
    axes.set_title(f"{title} (bar: median, arrow: asked)", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(REPORTS / f"{name}.svg", metadata={"Date": None})

"""A model's weights in other types: quantize() and llama.cpp's llama-quantize, on the same libllama in turn.

    python bench/quantize.py [--pairs 5] [--model NAME[=FILE]] [--peers FOLDER] [--no-write]

Each side is a fresh process that reads the file, writes the new one and ends; offgrid_llama's also imports NumPy and looks
at the plan before it begins. The new files are compared byte by byte. Where a type needs the importance of the weights,
both sides read it from the same file, of random numbers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from peers import ROOT, Peers

OURS, THEIRS = "offgrid_llama", "llama-quantize"
TYPES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "F16": ([], {}),
    "Q8_0": ([], {}),
    "Q4_0": ([], {}),
    "Q4_K_M": ([], {}),
    "Q5_K_S": (["--leave-output-tensor"], {"quantize_output_tensor": False}),
    "Q6_K": (["--pure"], {"pure": True}),
    "IQ4_NL": (["--token-embedding-type", "q8_0"], {"token_embedding_type": "q8_0"}),
    "IQ2_XS": (["--imatrix", "imatrix.gguf"], {"imatrix": "imatrix.gguf"}),
}
"""The types, with what is asked of either side besides."""

CHILD = "import sys, offgrid_llama; offgrid_llama.quantize(*sys.argv[1:4], allow_requantize=True, **eval(sys.argv[4]))"


def write_importance(model: Path, file: Path) -> None:
    """Write a file like llama-imatrix's, of random numbers for each matrix of the model."""
    import numpy as np

    import offgrid_llama as og

    sys.path.append(str(ROOT / "tests"))
    from helpers.twin import write_gguf

    random = np.random.default_rng(1)
    tensors = {}
    with og.GGUF(model) as header:
        for tensor in header.tensors():
            if len(tensor.shape) == 2:
                tensors[f"{tensor.name}.in_sum2"] = random.uniform(1, 100, (1, tensor.shape[0])).astype(np.float32)
                tensors[f"{tensor.name}.counts"] = np.ones((1, 1), np.float32)
    keys: dict[str, Any] = {
        "general.type": "imatrix",
        "imatrix.datasets": ["none"],
        "imatrix.chunk_count": 1,
        "imatrix.chunk_size": 512,
    }
    write_gguf(file, keys, tensors)


def main() -> None:
    parser = harness.parser(__doc__, "--model", "--peers", "--no-write")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--type", action="append", choices=TYPES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    peers, about = Peers(args.peers.resolve()), harness.environment()
    peers.check()
    environment, tool = peers.environment(), peers.bin / THEIRS
    about["pairs"] = args.pairs
    rows, verdicts, results, every = [], [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for model, file in harness.resolve(args.model).items():
            write_importance(file, Path(folder, "imatrix.gguf"))
            for kind in args.type or TYPES:
                options, arguments = TYPES[kind]
                made = {side: Path(folder, side) for side in (OURS, THEIRS)}
                commands: dict[str, list[str | Path]] = {
                    OURS: [sys.executable, "-c", CHILD, file, made[OURS], kind, repr(arguments)],
                    THEIRS: [tool, "--allow-requantize", *options, file, made[THEIRS], kind],
                }

                def take(
                    side: str, made: dict[str, Path] = made, commands: dict[str, list[str | Path]] = commands
                ) -> float:
                    made[side].unlink(missing_ok=True)
                    start = time.perf_counter()
                    subprocess.run(commands[side], env=environment, cwd=folder, capture_output=True, check=True)
                    return time.perf_counter() - start

                samples, quiet = harness.in_turn([OURS, THEIRS], args.pairs, take)
                same = made[OURS].read_bytes() == made[THEIRS].read_bytes()
                ratio = harness.ratios(samples[OURS], samples[THEIRS])
                name = f"{model}, {kind}"
                every[name] = samples
                results[name] = {"same": same, "bytes": made[OURS].stat().st_size, "ours_to_it": ratio, **quiet}
                what = " ".join([kind, *options])
                times = "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
                seconds = [f"{harness.median_range(samples[side])['median']:.2f}" for side in (OURS, THEIRS)]
                rows.append([model, what, "yes" if same else "NO", *seconds, times])
                verdicts.append(harness.verdict(f"{name}: the same bytes", same))
    header = ["model", "type", "same bytes", f"{OURS}, s", f"{THEIRS}, s", "ours to it, median of pairs (range)"]
    body = "\n".join([harness.table(header, rows), "\n## Figures to hold\n", *verdicts])
    data = {"environment": about, "samples": every, "results": results}
    harness.report("quantize", "A model's weights in other types", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()

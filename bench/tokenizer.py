"""Text to tokens and back: Vocab, and the methods of llama-cpp-python's Llama, on the same libllama in turn.

    python bench/tokenizer.py [--rounds 21] [--model NAME[=FILE]] [--no-write]

One process for each model, in which both sides have it loaded. A round takes one sample of each side, the first of a
round changes, and the ratios are those within a round. offgrid_llama gets str and gives str, llama-cpp-python gets and
gives bytes, as its methods want them. The tokens are the same, and that is checked. The texts are those of
tests/helpers/texts.py. The longest is not turned back: llama-cpp-python's `detokenize` takes the square of the length. A
token that is turned back alone, as "a word" is, comes from memory the second time it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import timeit
from functools import partial
from typing import TYPE_CHECKING, Any

import harness
from peers import ROOT, Peers

sys.path.append(str(ROOT / "tests"))

from helpers.texts import PROSE, mixed

if TYPE_CHECKING:
    from collections.abc import Callable

OURS, THEIRS = "offgrid_llama", "llama-cpp-python"
LIMIT = 1.0
MAX_DETOKENIZED = 64 * 1024


def texts() -> dict[str, str]:
    """Return the texts by name."""
    english = PROSE["English"]
    return {
        "a word": "Hello",
        "a line": english,
        "4 KiB of prose": (f"{english} " * 40)[:4096],
        "4 KiB mixed": mixed(4096).decode(),
        "1 MiB mixed": mixed(1 << 20).decode(),
    }


def child(file: str, rounds: int) -> dict[str, Any]:
    """Time everything on both sides and return all samples, in us a call."""
    import offgrid_llama as og

    llama_cpp: Any = importlib.import_module("llama_cpp")
    llama: Any = llama_cpp.Llama(file, n_ctx=256, n_batch=64, verbose=False)
    vocab = og.Model(file).vocab
    samples: dict[str, dict[str, list[float]]] = {}
    for name, text in texts().items():
        data = text.encode()
        tokens = vocab.tokenize(text)
        if tokens != llama.tokenize(data):
            sys.exit(f"{name}: the two sides give other tokens")
        timers: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            f"tokenize {name}": (partial(vocab.tokenize, text), partial(llama.tokenize, data))
        }
        if len(data) <= MAX_DETOKENIZED:
            timers[f"detokenize {name}"] = (partial(vocab.detokenize, tokens), partial(llama.detokenize, tokens))
        for call, functions in timers.items():
            sides = {side: timeit.Timer(function) for side, function in zip((OURS, THEIRS), functions, strict=True)}
            number = max(1, int(0.02 / sides[OURS].timeit(1)))
            values = samples.setdefault(call, {side: [] for side in sides})
            for _, side in harness.rotated(list(sides), rounds):
                values[side].append(sides[side].timeit(number) / number * 1e6)
    return {"samples": samples, "libraries": harness.libraries()}


def main() -> None:
    parser = harness.parser(__doc__, "--model", "--peers", "--no-write")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.model[0], args.rounds)), flush=True)
        os._exit(0)

    peers, about = Peers(args.peers.resolve()), harness.environment()
    peers.check()
    samples: dict[str, Any] = {}
    results: dict[str, Any] = {}
    rows, verdicts = [], []
    for model, file in harness.resolve(args.model).items():
        samples[model], same = harness.run_child(__file__, file, args.rounds, peers.environment())
        about |= {"rounds": args.rounds, "libraries, the same for both": same}
        for call, values in samples[model].items():
            ours, theirs = (harness.median_range(values[side]) for side in (OURS, THEIRS))
            ratio = harness.ratios(values[THEIRS], values[OURS])
            results[f"{model}, {call}"] = {"ours_us": ours, "llama_cpp_python_us": theirs, "times_as_fast": ratio}
            times = "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
            rows.append([model, call, f"{ours['median']:,.1f}", f"{theirs['median']:,.1f}", times])
            text = f"{model}, {call}: {ratio['median']:.2f} times as fast, at least {LIMIT} asked"
            verdicts.append(harness.verdict(text, ratio["median"] >= LIMIT))
    header = ["model", "call", f"{OURS}, us", f"{THEIRS}, us", "times as fast, median of pairs (range)"]
    body = "\n".join([harness.table(header, rows), "\n## Figures to hold\n", *verdicts])
    data = {"environment": about, "samples": samples, "results": results}
    harness.report("tokenizer", "Text to tokens and back", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()

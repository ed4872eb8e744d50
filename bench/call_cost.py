"""The cost of one bound call: the raw function through cffi in API mode, guard included, and through ctypes.

    python bench/call_cost.py [--rounds 21] [--model NAME[=FILE]] [--no-write]

One process, one libllama, one model and context: the same pointers go to `offgrid_llama._capi.lib` and to the ctypes
functions of llama-cpp-python, its raw layer too (`llama_cpp.llama_n_ctx`), not its classes. The two take turns, and the
first of a turn changes each round. The cost of `timeit`'s empty loop is shown and not subtracted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import timeit
from typing import Any

import harness
from peers import Peers

CALLS = {
    "llama_max_devices": "f()",
    "llama_n_ctx": "f(ctx)",
    "llama_vocab_bos": "f(vocab)",
    "llama_vocab_is_eog": "f(vocab, 1000)",
    "llama_memory_seq_pos_max": "f(memory, 0)",
    "llama_get_logits_ith": "f(ctx, -1)",
    "llama_vocab_get_text": "f(vocab, 1000)",
    "llama_token_to_piece": "f(vocab, 1000, buffer, 64, 0, False)",
}
LIMIT = 0.5


def child(file: str, rounds: int) -> dict[str, Any]:
    """Time every call on both sides and return all samples, in ns a call."""
    import ctypes

    from offgrid_llama._capi import ffi, lib

    llama_cpp: Any = importlib.import_module("llama_cpp")
    llama: Any = llama_cpp.Llama(file, n_ctx=256, n_batch=64, verbose=False)
    llama.eval([llama.token_bos()])
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    memory = llama_cpp.llama_get_memory(llama.ctx)
    theirs = {"ctx": llama.ctx, "vocab": vocab, "memory": memory, "buffer": ctypes.create_string_buffer(64)}
    ours = {
        "ctx": ffi.cast("struct llama_context *", llama.ctx),
        "vocab": ffi.cast("struct llama_vocab *", vocab),
        "memory": ffi.cast("llama_memory_t", memory),
        "buffer": ffi.new("char[64]"),
    }
    samples: dict[str, dict[str, list[float]]] = {}
    for name, call in {"empty loop": "pass", **CALLS}.items():
        timers = {
            "ours": timeit.Timer(call, globals={**ours, "f": getattr(lib, name, None)}),
            "llama-cpp-python": timeit.Timer(call, globals={**theirs, "f": getattr(llama_cpp, name, None)}),
        }
        number = max(1000, int(0.02 / (timers["ours"].timeit(2000) / 2000)))
        values = samples.setdefault(name, {side: [] for side in timers})
        for _, side in harness.rotated(list(timers), rounds):
            values[side].append(timers[side].timeit(number) / number * 1e9)
    return {"samples": samples, "libraries": harness.libraries()}


def main() -> None:
    parser = harness.parser(__doc__, "--peers", "--no-write")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--model", default=harness.MODELS[0], metavar="NAME[=FILE]")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.model, args.rounds)), flush=True)
        os._exit(0)

    peers, about = Peers(args.peers.resolve()), harness.environment()
    peers.check()
    (file,) = harness.resolve([args.model]).values()
    samples, same = harness.run_child(__file__, file, args.rounds, peers.environment())
    about |= {"rounds": args.rounds, "libraries, the same for both": same}

    rows, verdicts, results = [], [], {}
    for name, values in samples.items():
        ours, theirs = (harness.median_range(values[side]) for side in ("ours", "llama-cpp-python"))
        ratio = harness.ratios(values["ours"], values["llama-cpp-python"])
        results[name] = {"ours_ns": ours, "llama_cpp_python_ns": theirs, "ours_to_it": ratio}
        rows.append([name, f"{ours['median']:.0f}", f"{theirs['median']:.0f}", f"{ratio['median']:.2f}"])
        if name in CALLS:
            text = f"{name}: {ratio['median']:.2f} of the ctypes call, at most {LIMIT} asked"
            verdicts.append(harness.verdict(text, ratio["median"] <= LIMIT))
    body = harness.table(["function", "ours, ns", "llama-cpp-python, ns", "ours to it"], rows)
    data = {"environment": about, "samples": samples, "results": results}
    text = "\n".join([body, "\n## Figures to hold\n", *verdicts])
    harness.report("call_cost", "The cost of a bound call", data, text, write=not args.no_write)


if __name__ == "__main__":
    main()

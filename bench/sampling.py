"""One token of a row of logits: FastSampler, and llama_sampler_sample with the chain of the same SamplingParams.

    python bench/sampling.py [--rounds 21] [--model NAME[=FILE]] [--no-write]

The logits are a model's, of a decoded prompt. Both sides are called through cffi, with no other Python between the samples;
`sample()` beside them is the method that users call, of FastSampler and of SamplerChain. A round takes one sample of each
side, the first of a round changes, and the ratios are those within a round. That both sides choose with the same
probabilities is for tests/sampling/test_fast_sampler.py.
"""

from __future__ import annotations

import timeit
from functools import partial
from typing import TYPE_CHECKING, Any

import harness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OURS, THEIRS = "og_fast_sample", "llama_sampler_sample"
METHOD, CHAIN = "FastSampler.sample", "SamplerChain.sample"
LIMIT = 10.0
ASKED = {"greedy", "default"}
PROMPT = "The quick brown fox jumps over the lazy dog, and then it"


def rules() -> dict[str, Any]:
    """Return what is sampled with, by name."""
    import offgrid_llama as og

    return {
        "greedy": og.SamplingParams(temperature=0),
        "default": og.SamplingParams(seed=1),
        "penalties, default": og.SamplingParams(seed=1, repeat_penalty=1.1),
        "top-p of all": og.SamplingParams(seed=1, top_k=0, min_p=0.0),
        "min-p of all": og.SamplingParams(seed=1, top_k=0, top_p=1.0),
        "temperature alone": og.SamplingParams(seed=1, top_k=0, top_p=1.0, min_p=0.0),
    }


def measure(file: str, rounds: int) -> tuple[int, dict[str, dict[str, list[float]]]]:
    """Return the size of the vocabulary, and all samples in us a token."""
    import offgrid_llama as og
    from offgrid_llama._capi import lib

    samples: dict[str, dict[str, list[float]]] = {}
    with og.Model(file) as model, og.Context(model, n_ctx=256) as context:
        batch = og.Batch(64)
        batch.add_sequence(model.vocab.tokenize(PROMPT))
        context.decode(batch)
        row = len(batch) - 1
        for name, params in rules().items():
            fast = og.FastSampler(model.vocab, params)
            with params.chain(model.vocab) as chain, chain.handle as chain_ptr, context.handle as ptr:
                logits = lib.llama_get_logits_ith(ptr, row)
                raw: Mapping[str, Callable[[], Any]] = {
                    OURS: partial(lib.og_fast_sample, fast.native, logits, len(model.vocab)),
                    THEIRS: partial(lib.llama_sampler_sample, chain_ptr, ptr, row),
                }
                values = take(raw, rounds)
            with params.chain(model.vocab) as chain:
                methods: Mapping[str, Callable[[], Any]] = {
                    METHOD: partial(fast.sample, context, row),
                    CHAIN: partial(chain.sample, context, row),
                }
                samples[name] = values | take(methods, rounds)
        return len(model.vocab), samples


def take(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the samples of each side, in turn."""
    timers = {side: timeit.Timer(call) for side, call in calls.items()}
    number = max(3, int(0.02 / (timers[next(iter(timers))].timeit(50) / 50)))
    values: dict[str, list[float]] = {side: [] for side in calls}
    for _, side in harness.rotated(list(calls), rounds):
        values[side].append(timers[side].timeit(number) / number * 1e6)
    return values


def main() -> None:
    parser = harness.parser(__doc__, "--model", "--no-write")
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    about = harness.environment() | {"rounds": args.rounds}
    rows, verdicts = [], []
    every: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for model, file in harness.resolve(args.model).items():
        size, every[model] = measure(str(file), args.rounds)
        for name, values in every[model].items():
            medians = {side: harness.median_range(times)["median"] for side, times in values.items()}
            raw = harness.ratios(values[THEIRS], values[OURS])
            method = harness.ratios(values[CHAIN], values[METHOD])
            results[f"{model}, {name}"] = {"us": medians, "times_as_fast": raw, "method_times_as_fast": method}
            times = ["{median:.1f} ({min:.1f} to {max:.1f})".format(**ratio) for ratio in (raw, method)]
            rows.append([f"{model}, {size:,}", name, *(f"{value:,.1f}" for value in medians.values()), *times])
            if name in ASKED and size > 200_000:
                text = f"{size:,} entries, {name}: {raw['median']:.1f} times as fast, at least {LIMIT:.0f} asked"
                verdicts.append(harness.verdict(text, raw["median"] >= LIMIT))
    header = ["model, entries", "samplers", f"{OURS}, us", f"{THEIRS}, us", f"{METHOD}, us", f"{CHAIN}, us"]
    header += ["times as fast, median of pairs (range)", "the methods"]
    body = "\n".join([harness.table(header, rows), "\n## Figures to hold\n", *verdicts])
    data = {"environment": about, "samples": every, "results": results}
    harness.report("sampling", "One token of a row of logits", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()

# ruff: noqa: T201 - a script that prints
"""Add near_ties to golden_greedy.json: which tokens another CPU, with other kernels, may choose at a step.

    python make_golden_near_ties.py

How kernels round moves logits, and how far depends on the text: a margin of 1.5 on the CPU that recorded the tokens was
0.3 on another one. So each case's tokens are fed again in all of the ways below, and a token that came within
`close_call` of the best at a step in any of them is a near tie there; so is a recorded runner-up within it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import offgrid_llama as og
from offgrid_llama import store

FILE = Path(__file__).with_name("golden_greedy.json")
ATTENTION: list[dict[str, Any]] = [
    {"flash_attn_type": "enabled"},
    {"flash_attn_type": "disabled"},
    {"flash_attn_type": "disabled", "type_k": "f32", "type_v": "f32"},
]
BATCHES = (1, 4, 512)
"""Tokens in a batch: kernels differ by that, too."""


def rows(context: og.Context, tokens: list[int], n_batch: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the logits after each of the tokens."""
    for begin in range(0, len(tokens), n_batch):
        part = tokens[begin : begin + n_batch]
        batch = og.Batch(len(part))
        for i, token in enumerate(part):
            batch.add(token, begin + i, [0], logits=True)
        context.decode(batch)
        for i in range(len(part)):
            yield np.array(context.logits(i))


def near_ties(name: str, case: dict[str, Any], close_call: float) -> dict[int, list[int]]:
    """Return the near ties of a case, by step."""
    prompt, tokens = case["prompt_tokens"], case["tokens"]
    steps = [
        {runner_up} if margin < close_call else set()
        for margin, runner_up in zip(case["margins"], case["runners_up"], strict=True)
    ]
    for extra, attention, n_batch in itertools.product((True, False), ATTENTION, BATCHES):
        with (
            og.Model(store.resolve(name), use_extra_bufts=extra) as model,
            og.Context(model, n_ctx=512, n_threads=2, n_outputs_max=512, swa_full=False, **attention) as context,
        ):
            logits = rows(context, [*prompt, *tokens[:-1]], n_batch)
            for step, row in zip(steps, itertools.islice(logits, len(prompt) - 1, None), strict=True):
                step.update(np.flatnonzero(row > row.max() - close_call).tolist())
    found = enumerate(zip(steps, tokens, strict=True))
    return {i: others for i, (step, token) in found if (others := sorted(step - {token}))}


def main() -> None:
    """Add them, and print how many there are."""
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    for name, model in golden["models"].items():
        for case in model["cases"]:
            case["near_ties"] = near_ties(name, case, golden["header"]["close_call"])
            print(
                f"{name:24}{case['label']:12}{len(case['near_ties']):3} of {len(case['tokens'])} steps have near ties"
            )
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    text = re.sub(r"\[[\d\s,.\-]+\]", lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), text)
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

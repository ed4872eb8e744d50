"""Greedy decoding gives the tokens of llama.cpp's own tools; data/make_golden_*.py tell how those were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import offgrid_llama as og
from offgrid_llama import store

if TYPE_CHECKING:
    from collections.abc import Iterator

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_greedy.json").read_text(encoding="utf-8"))
HEADER, MODELS = GOLDEN["header"], GOLDEN["models"]


@pytest.fixture(scope="module", params=MODELS)
def golden(request: pytest.FixtureRequest) -> Iterator[tuple[og.Model, dict[str, Any]]]:
    """One of the two models, and its recorded cases by label."""
    name: str = request.param
    with og.Model(store.resolve(name)) as model:
        yield model, {case["label"]: case for case in MODELS[name]["cases"]}


@pytest.mark.parametrize("label", [case["label"] for case in next(iter(MODELS.values()))["cases"]])
def test_greedy_tokens_are_those_of_llama_completion(golden: tuple[og.Model, dict[str, Any]], label: str) -> None:
    """Each step's greedy token is the recorded one, which is then fed; another CPU may choose a recorded near tie."""
    model, cases = golden
    case = cases[label]
    prompt = model.vocab.tokenize(case["prompt"], add_special=True, parse_special=True)
    assert prompt == case["prompt_tokens"]

    with og.Context(
        model,
        n_ctx=HEADER["n_ctx"],
        n_batch=HEADER["n_batch"],
        n_ubatch=HEADER["n_ubatch"],
        n_threads=HEADER["n_threads"],
        n_threads_batch=HEADER["n_threads"],
        flash_attn_type="enabled",
        swa_full=False,
    ) as ctx:
        sampler = og.SamplerChain([og.samplers.greedy()])

        def step(tokens: list[int], position: int) -> int:
            """Decode the tokens, the first at the position, and choose the next one."""
            batch = og.Batch(len(tokens))
            for i, token in enumerate(tokens):
                batch.add(token, position + i, [0], logits=i == len(tokens) - 1)
            ctx.decode(batch)
            row = len(batch) - 1
            chosen = sampler.sample(ctx, row)
            assert chosen == int(ctx.logits(row).argmax())
            return chosen

        # The recording tool decoded the prompt's last token apart from the rest: so do we, for the same CPU kernels.
        step(prompt[:-1], 0)
        fed = prompt[-1]
        for i, expected in enumerate(case["tokens"]):
            chosen = step([fed], len(prompt) - 1 + i)
            assert chosen in (expected, *case["near_ties"].get(str(i), ())), f"step {i}"
            fed = expected
        sampler.close()

    ended = model.vocab.is_eog(case["tokens"][-1])
    assert ended or len(case["tokens"]) == HEADER["n_predict"]
    said = case["tokens"][:-1] if ended else case["tokens"]
    assert b"".join(map(model.vocab.piece, said)).decode("utf-8", "replace") == case["text"]

"""Models that do something else than chat: filling in, ranking, vectors, with adapters."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import offgrid_llama as og
from helpers import minilm
from helpers.adapters import write_lora
from helpers.rerankers import DOCUMENTS, QUERY, write_bert
from helpers.serving import Served, serving
from helpers.twin import tiny_llama
from offgrid_llama.tasks.infill import INFILL_SAMPLERS, fim_prompt

TEXTS = ["A cat sat on the mat.", "A cat is sitting on a mat.", "Stocks fell by two percent."]


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a head that ranks."""
    path = tmp_path_factory.mktemp("kinds") / "ranker.gguf"
    write_bert(path)
    return path


@pytest.fixture(scope="module")
def kinds(coder: Path, ranker: Path) -> Iterator[Served]:
    """A server with a model that fills in, one that ranks, and all-MiniLM-L6-v2."""
    with serving(f"coder={coder}", f"ranker={ranker}", f"sentences={minilm.path()}") as served:
        yield served


def post(served: Served, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body, timeout=60)


def test_a_text_between_two(kinds: Served, coder: Path) -> None:
    """``suffix`` gives what the library's infill() gives."""
    with og.Model(coder) as model:
        prompt = fim_prompt(model.vocab, "ab", "cd")
        # The sampler ends a text of which it is not sure, as all of such a model's are.
        likely = dict.fromkeys(range(7, 33), 30.0)
        sampling = og.SamplingParams(temperature=0, samplers=INFILL_SAMPLERS, logit_bias=likely)
        expected = og.infill(model, "ab", "cd", max_tokens=12, sampling=sampling).text
    assert len(expected) == 12
    asked = {"model": "coder", "prompt": "ab", "suffix": "cd", "max_tokens": 12, "temperature": 0}
    asked["logit_bias"] = {str(token): value for token, value in likely.items()}
    found = post(kinds, "/v1/completions", **asked)
    assert found.json()["choices"][0]["text"] == expected
    assert found.json()["usage"]["prompt_tokens"] == len(prompt)
    unsure = post(kinds, "/v1/completions", **{**asked, "logit_bias": None}).json()["choices"][0]
    assert (unsure["text"], unsure["finish_reason"]) == ("", "stop")
    plain = post(kinds, "/v1/completions", **{**asked, "suffix": ""})
    assert plain.json()["usage"]["prompt_tokens"] < len(prompt)
    sampled = post(kinds, "/v1/completions", **{**asked, "temperature": 1, "seed": 5})
    assert sampled.status_code == 200
    refused = post(kinds, "/v1/completions", model="coder", prompt=[7, 8], suffix="cd")
    assert refused.status_code == 400
    assert "suffix" in refused.json()["error"]["message"]


def test_documents_are_ranked(kinds: Served, ranker: Path) -> None:
    """As Reranker ranks them, best first; only that model can."""
    with og.Model(ranker) as model, og.Reranker(model) as reranker:
        expected = reranker.rank(QUERY, DOCUMENTS)
    found = post(kinds, "/v1/rerank", model="ranker", query=QUERY, documents=list(DOCUMENTS)).json()["results"]
    assert [each["index"] for each in found] == [place.document for place in expected]
    assert [each["relevance_score"] for each in found] == pytest.approx([place.score for place in expected], abs=1e-5)
    options: Any = {"documents": list(DOCUMENTS), "top_n": 2, "return_documents": True}
    two = post(kinds, "/v1/rerank", model="ranker", query=QUERY, **options).json()["results"]
    assert [each["document"]["text"] for each in two] == [DOCUMENTS[place.document] for place in expected[:2]]
    for path, body in (
        ("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):  # fmt: skip
        refused = post(kinds, path, model="ranker", **body)
        assert refused.status_code == 400
        assert "vectors" in refused.json()["error"]["message"]


def test_sentences_become_vectors(kinds: Served) -> None:
    """As Embedder makes them, as numbers and as base64; near for texts that mean the same."""
    with og.Model(minilm.path()) as model, og.Embedder(model) as embedder:
        expected = embedder.embed(TEXTS)
    found = post(kinds, "/v1/embeddings", model="sentences", input=TEXTS).json()
    vectors = np.array([each["embedding"] for each in found["data"]])
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4)
    assert vectors[0] @ vectors[1] > 0.8
    assert vectors[0] @ vectors[2] < 0.2
    coded = post(kinds, "/v1/embeddings", model="sentences", input=TEXTS[0], encoding_format="base64").json()
    decoded = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, expected[0], rtol=0, atol=1e-4)
    refused = post(kinds, "/v1/embeddings", model="sentences", input=" ".join(TEXTS) * 300)
    assert refused.status_code == 400, refused.text


def test_models_with_adapters(coder: Path, tmp_path: Path) -> None:
    """One file, with an adapter and without; with one that does not fit, it is an error that says so."""
    lora, bad = tmp_path / "lora.gguf", tmp_path / "bad.gguf"
    weights = tiny_llama()[1]
    write_lora(lora, weights, 0)
    bad.write_bytes(lora.read_bytes()[:-500])
    config = tmp_path / "settings.toml"
    config.write_text(
        f"[[models]]\nname = 'plain'\nmodel = '{coder}'\npreload = true\n"
        f"[[models]]\nname = 'tuned'\nmodel = '{coder}'\nloras = {{ '{lora}' = 0.5 }}\n"
        f"[[models]]\nname = 'broken'\nmodel = '{coder}'\nloras = {{ '{bad}' = 1 }}\n"
        f"[[models]]\nname = 'endless'\nmodel = '{coder}'\nloras = {{ '{lora}' = 1e30 }}\n"
        f"[[models]]\nname = 'missing'\nmodel = '{coder}'\nloras = {{ 'none.gguf' = 1 }}\n",
        encoding="utf-8",
    )
    prompt = [*range(7, 30)]
    greedy = {"max_tokens": 8, "temperature": 0}
    texts, vectors = {}, {}
    with og.Model(coder) as model, og.LoRA(model, lora) as adapter:
        for name, loras in (("plain", {}), ("tuned", {adapter: 0.5})):
            with og.Engine(model, loras=loras) as engine:
                texts[name] = engine.generate(prompt, max_tokens=8, temperature=0).text
            with og.Embedder(model, pooling_type="mean", loras=loras) as embedder:
                vectors[name] = embedder.embed([[7, 8, 9]])[0]
    assert texts["plain"] != texts["tuned"]
    with serving("--config", str(config)) as served:
        for name, text in texts.items():
            assert (
                post(served, "/v1/completions", model=name, prompt=prompt, **greedy).json()["choices"][0]["text"]
                == text
            )
            found = post(served, "/v1/embeddings", model=name, input=[7, 8, 9]).json()["data"][0]["embedding"]
            np.testing.assert_allclose(found, vectors[name], atol=1e-4)
        for name, says in (("broken", "bad.gguf"), ("missing", "none.gguf")):
            refused = post(served, "/v1/completions", model=name, prompt=prompt)
            assert refused.status_code >= 400
            assert says in refused.json()["error"]["message"]
        failed = post(served, "/v1/completions", model="endless", prompt=prompt)
        assert failed.status_code == 500  # no request can do anything about it
        assert "no numbers" in failed.json()["error"]["message"]


def test_the_files_of_models_have_a_date(kinds: Served, coder: Path) -> None:
    """``created`` is when the file was made."""
    assert kinds.models()["coder"]["created"] == int(coder.stat().st_mtime)

"""Ollama's API about models, and its vectors, as Ollama's own client and plain HTTP get them."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import pytest
from ollama import EmbeddingsResponse, EmbedResponse, ListResponse, ProcessResponse, ShowResponse

from helpers import minilm
from helpers.official import check
from helpers.requests import post
from helpers.serving import ALIAS, MODEL, Served, serving, wait_until
from helpers.twin import LETTERS, write_tiny_llama

LIST = ("name", "capabilities", "context_length", "embedding_length")


@pytest.fixture(scope="module")
def kinds(coder: Path, smollm2_path: Path) -> Iterator[Served]:
    """A server with a model that fills in, all-MiniLM-L6-v2, a chat model, and one that is no file."""
    del smollm2_path
    models = [f"coder={coder}", f"sentences={minilm.path()}", MODEL, "gone=/nothing.gguf"]
    with serving(*models, "--n-ctx", "4096") as served:
        yield served


@pytest.fixture(scope="module")
def ollama_client(kinds: Served) -> Iterator[ollama.Client]:
    """Ollama's own client of that server."""
    with ollama.Client(host=kinds.url) as client:
        yield client


def test_the_list(server: Served, kinds: Served, ollama_client: ollama.Client) -> None:
    """Each model under each of its names, with a tag; a name of the list is one that every request takes."""
    told = httpx.get(f"{server.url}/api/tags", timeout=60)
    check(ListResponse, told.json(), LIST)
    names = [model["model"] for model in told.json()["models"]]
    assert set(names) == {f"{MODEL}:latest", "smollm2:135m", "gemma-3-270m:latest", f"{ALIAS}:latest"}
    digests = {model["model"]: model["digest"] for model in told.json()["models"]}
    assert digests[f"{MODEL}:latest"] == digests[f"{ALIAS}:latest"] != digests["gemma-3-270m:latest"]
    models = {model.model: model for model in ollama_client.list().models}
    assert set(models) == {"coder:latest", "sentences:latest", f"{MODEL}:latest", "smollm2:135m", "gone:latest"}
    found = models[f"{MODEL}:latest"]
    assert found.size == 98_362_432
    assert found.details is not None
    assert (found.details.parameter_size, found.details.quantization_level) == ("134.52M", "Q4_1")
    assert httpx.head(f"{kinds.url}/api/tags", timeout=60).status_code == 200
    openai = httpx.get(f"{kinds.url}/v1/models/{MODEL}:latest", timeout=60)
    assert openai.json()["id"] == MODEL


def test_one_model(kinds: Served, ollama_client: ollama.Client) -> None:
    """The facts of its file, whether it is loaded or not, and the context that a request has here."""
    known: dict[str, list[str]] = {
        "smollm2:135m": ["completion", "tools"], "coder": ["completion", "insert"], "sentences": ["embedding"], "gone": [],
    }  # fmt: skip
    for name, can in known.items():
        told = post(kinds, "/api/show", {"model": name, "verbose": False})
        assert told.status_code == 200
        check(ShowResponse, told.json())
        assert told.json()["capabilities"] == can
    found = ollama_client.show(MODEL)
    assert found.modelinfo is not None
    assert found.modelinfo["llama.context_length"] == 8192
    assert "num_ctx" in (found.parameters or "")
    assert "im_start" in (found.template or "")
    assert post(kinds, "/api/show", {"name": MODEL}).status_code == 200
    for body, status in (({"model": "nope"}, 404), ({"model": f"{MODEL}:8b"}, 404), ({}, 400)):
        response = post(kinds, "/api/show", body)
        assert (response.status_code, list(response.json())) == (status, ["error"])


def test_the_loaded_models(kinds: Served, ollama_client: ollama.Client) -> None:
    """Those that take memory, and until when; what a request says of that is told at once."""
    ollama_client.generate(MODEL, keep_alive="10m")
    told = httpx.get(f"{kinds.url}/api/ps", timeout=60).json()
    check(ProcessResponse, told)
    (model,) = [each for each in told["models"] if each["model"] == f"{MODEL}:latest"]
    assert model["size"] > 98_362_432
    assert model["context_length"] == 512
    left = datetime.fromisoformat(model["expires_at"].replace("Z", "+00:00")) - datetime.now(timezone.utc)
    assert timedelta(minutes=9) < left <= timedelta(minutes=10)
    ollama_client.generate(MODEL, keep_alive=0)
    assert f"{MODEL}:latest" not in {each.model for each in ollama_client.ps().models}


def test_the_version(kinds: Served) -> None:
    """Clients look whether the server is there, and whether it is new enough."""
    version = httpx.get(f"{kinds.url}/api/version", timeout=10).json()["version"]
    assert tuple(map(int, version.split("."))) > (0, 12, 0)
    assert httpx.head(kinds.url, timeout=10).status_code == 200
    assert httpx.head(f"{kinds.url}/api/version", timeout=10).status_code == 200


def test_vectors(kinds: Served, ollama_client: ollama.Client) -> None:
    """They are those of OpenAI's API, of length 1, also where fewer values are asked for; a text that is too long is cut."""
    texts = ["A cat sat on the mat.", "Stocks fell."]
    told = ollama_client.embed("sentences", texts)
    ours = post(kinds, "/v1/embeddings", {"model": "sentences", "input": texts}).json()
    np.testing.assert_allclose(told.embeddings, [each["embedding"] for each in ours["data"]], atol=1e-6)
    assert (told.prompt_eval_count, told.model) == (ours["usage"]["prompt_tokens"], "sentences")
    assert (told.total_duration or 0) > (told.load_duration or 0) > 0
    (single,) = ollama_client.embed("sentences", texts[0]).embeddings
    np.testing.assert_allclose(single, told.embeddings[0], atol=1e-6)
    (few,) = ollama_client.embed("sentences", texts[0], dimensions=16).embeddings
    assert len(few) == 16
    assert math.isclose(float(np.linalg.norm(few)), 1, rel_tol=1e-4)
    np.testing.assert_allclose(few, np.array(single[:16]) / np.linalg.norm(single[:16]), atol=1e-6)
    assert len(ollama_client.embed("sentences", texts[0], dimensions=4096).embeddings[0]) == len(single)
    old = ollama_client.embeddings("sentences", texts[0]).embedding
    np.testing.assert_allclose(old, single, atol=1e-6)
    long = post(kinds, "/api/embed", {"model": "sentences", "input": "cat " * 1000})
    assert (long.status_code, long.json()["prompt_eval_count"]) == (200, 512)
    check(EmbedResponse, long.json())
    check(EmbeddingsResponse, post(kinds, "/api/embeddings", {"model": "sentences", "prompt": "a"}).json())
    refused = post(kinds, "/api/embed", {"model": "sentences", "input": ["a", "cat " * 1000], "truncate": False})
    assert refused.status_code == 400
    assert "input[1]" in refused.json()["error"]


def test_vectors_of_nothing(kinds: Served, ollama_client: ollama.Client) -> None:
    """A request without a text loads the model, or leaves it for the next time to be loaded."""
    assert ollama_client.embed("sentences", "", keep_alive="5m").embeddings == []
    assert ollama_client.embed("sentences", []).embeddings == []
    assert ollama_client.embeddings("sentences", "").embedding == []
    assert kinds.models()["sentences"]["status"] == "ready"
    assert ollama_client.embed("sentences", "a", keep_alive=0).embeddings
    wait_until(lambda: kinds.models()["sentences"]["status"] == "unloaded")
    assert post(kinds, "/api/embed", {"model": "nope", "input": "a"}).status_code == 404


def test_models_are_the_operators(kinds: Served, ollama_client: ollama.Client) -> None:
    """By default no client pulls, copies or deletes; the refusal says which setting allows it."""
    tries: dict[str, Callable[[], Any]] = {
        "pull": lambda: ollama_client.pull("smollm2:360m"), "copy": lambda: ollama_client.copy(MODEL, "b"),
        "delete": lambda: ollama_client.delete(MODEL),
    }  # fmt: skip
    for what, attempt in tries.items():
        with pytest.raises(ollama.ResponseError, match=f"{what} models: its setting manage_models") as caught:
            attempt()
        assert caught.value.status_code == 403
    assert kinds.models().keys() == {"coder", "sentences", MODEL, "gone"}


def test_what_is_not_supported(kinds: Served, ollama_client: ollama.Client, tmp_path: Path) -> None:
    """Creating and pushing are refused, also where a whole file is sent."""
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(1_000_000))
    tries: list[Callable[[], Any]] = [
        lambda: ollama_client.create("a", from_=MODEL), lambda: ollama_client.push(MODEL),
        lambda: ollama_client.create_blob(file),
    ]  # fmt: skip
    for attempt in tries:
        with pytest.raises(ollama.ResponseError, match="this server does not") as caught:
            attempt()
        assert caught.value.status_code == 501
    assert ollama_client.list().models


@pytest.fixture
def managed(smollm2_path: Path, tmp_path: Path) -> Iterator[Served]:
    """A server that lets clients manage models, with a cache of its own."""
    models = tmp_path / "models"
    models.mkdir()
    for path in (smollm2_path, smollm2_path.with_suffix(".json")):
        shutil.copy(path, models)
    tiny = tmp_path / "tiny.gguf"
    write_tiny_llama(tiny, more=LETTERS)
    environment = {"OFFGRID_LLAMA_CACHE": str(tmp_path), "OFFGRID_LLAMA_MANAGE_MODELS": "1"}
    with serving(f"tiny={tiny}", environment=environment) as served:
        yield served


def test_managing_models(managed: Served, tmp_path: Path) -> None:
    """With the setting, cached models are offered, and clients pull, copy and delete models of the store."""
    with ollama.Client(host=managed.url) as client:

        def names() -> set[str | None]:
            return {model.model for model in client.list().models}

        assert names() == {"tiny:latest", f"{MODEL}:latest", "smollm2:135m"}
        reports = [report.status for report in client.pull("smollm2:135m", stream=True)]
        assert (reports[0], reports[-1]) == ("pulling manifest", "success")
        assert client.pull("smollm2:135m").status == "success"
        client.copy("smollm2:135m", "mine:7b")
        assert names() == {"tiny:latest", f"{MODEL}:latest", "smollm2:135m", "mine:7b"}
        assert client.generate("mine:7b", "Hi", options={"num_predict": 2, "temperature": 0}).eval_count == 2
        client.delete(MODEL)
        assert names() == {"tiny:latest", "mine:7b", "smollm2:135m"}
        file = tmp_path / "models" / "smollm2-135m-instruct.gguf"
        assert file.exists()
        client.delete("mine:7b")
        assert names() == {"tiny:latest"}
        assert not file.exists()
        tries: list[tuple[Callable[[], Any], int]] = [
            (lambda: client.delete("tiny"), 403), (lambda: client.delete("mine:7b"), 404),
            (lambda: client.copy("tiny", "../x?"), 400), (lambda: client.copy("tiny", "TINY:latest"), 400),
            (lambda: client.copy("nope", "b"), 404), (lambda: client.pull("nope"), 404),
            (lambda: client.pull("/etc/passwd"), 404), (lambda: client.pull(str(tmp_path / "tiny.gguf")), 404),
        ]  # fmt: skip
        for attempt, status in tries:
            with pytest.raises(ollama.ResponseError) as caught:
                attempt()
            assert caught.value.status_code == status
        with pytest.raises(ollama.ResponseError, match="unknown model"):
            list(client.pull("nope", stream=True))


def test_the_asynchronous_client(kinds: Served) -> None:
    """It gets the same."""

    async def main() -> tuple[Any, ...]:
        client = ollama.AsyncClient(host=kinds.url)
        found = await asyncio.gather(client.list(), client.show(MODEL), client.ps(), client.embed("sentences", "a"))
        await client.close()  # type: ignore[no-untyped-call]
        return found

    listed, shown, _, embedded = asyncio.run(main())
    assert len(listed.models) == 5
    assert shown.details.family == "llama"
    assert len(embedded.embeddings) == 1

"""The server with models that do something else than chat, below another program's path, and as a service of systemd."""

from __future__ import annotations

import base64
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import minilm
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from serving import Served, serving, wait_until
from test_adapter import write_lora
from test_infill import FIM
from test_reranking import DOCUMENTS, QUERY, write_bert
from twin import LETTERS, tiny_llama, write_tiny_llama

import offgrid_llama as og
from offgrid_llama.infill import INFILL_SAMPLERS, fim_prompt
from offgrid_llama.server import ModelSettings, create_app, launch

KEY = "a-key-of-some-length"
TEXTS = ["A cat sat on the mat.", "A cat is sitting on a mat.", "Stocks fell by two percent."]


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama that can fill in the middle."""
    path = tmp_path_factory.mktemp("kinds") / "coder.gguf"
    write_tiny_llama(path, more={**LETTERS, **FIM, "tokenizer.ggml.add_bos_token": True})
    return path


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


def test_the_app_below_a_path_of_another_program(coder: Path) -> None:
    """It is mounted there with its lifespan: it answers, asks for its key where it must, and its workers end with it."""
    own = create_app(models=[ModelSettings("coder", str(coder), preload=True)], api_keys=[KEY])

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> Any:
        async with own.router.lifespan_context(own):
            yield

    program = FastAPI(lifespan=lifespan)
    program.mount("/llm", own)
    server = uvicorn.Server(uvicorn.Config(program, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/llm"
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
        assert httpx.get(f"{url}/v1/models").status_code == 401
        page = httpx.get(f"{url}/")
        assert "page/page.js" in page.text
        assert httpx.get(f"{url}/page/page.js").status_code == 200
        head = {"Authorization": f"Bearer {KEY}"}
        asked: Any = {"prompt": "ab", "max_tokens": 12, "temperature": 0}
        whole = httpx.post(f"{url}/v1/completions", json=asked, headers=head).json()["choices"][0]["text"]
        streamed = httpx.post(f"{url}/v1/completions", json={**asked, "stream": True}, headers=head).text
        assert streamed.endswith("data: [DONE]\n\n")
        assert whole
        pid = httpx.get(f"{url}/v1/models/coder", headers=head).json()["pid"]
    finally:
        server.should_exit = True
        thread.join(30)
    assert not Path(f"/proc/{pid}").exists()


def test_a_service_of_systemd(coder: Path, tmp_path: Path) -> None:
    """It says when it listens, when its model is ready, that it lives, and when it stops; its workers say nothing."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(30)
        said: list[str] = []

        def until(message: str) -> None:
            while message not in said:
                said.append(manager.recv(1000).decode())

        with serving(f"coder={coder}", environment={"NOTIFY_SOCKET": str(address)}) as served:
            until("READY=1")
            until("STATUS=ready")
            until("WATCHDOG=1")
            (pid,) = served.worker_pids()
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
            served.process.send_signal(signal.SIGTERM)
            until("STOPPING=1")


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "offgrid_llama.cli", "serve", "--check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_check_of_the_settings(coder: Path, tmp_path: Path) -> None:
    """It tells what would be served and starts nothing, or what is wrong and with what."""
    well = check(f"coder={coder}", "--alias", "mine=coder")
    assert well.returncode == 0
    assert str(coder) in well.stdout
    assert "also mine" in well.stdout
    file = tmp_path / "settings.toml"
    for text, says in (
        ("prot = 1", "prot"), ("port = 'x'", "port"), ("host = '0.0.0.0'", "insecure"), ("a = [", "settings.toml"),
        ("[[models]]\nname = '/a b'", "name"),
        (f"[[models]]\nname = 'a'\nmodel = '{tmp_path}/missing.gguf'", "missing.gguf"),
        (f"[[models]]\nname = 'a'\nmodel = '{coder}'\ntemplate = 'missing.jinja'", "missing.jinja"),
        (f"[[models]]\nname = 'a'\nmodel = '{coder}'\nloras = {{ 'missing.gguf' = 1 }}", "missing.gguf"),
        (f"[[models]]\nname = 'a'\nmodel = '{coder}'\nloras = {{ '{coder}' = nan }}", "scale"),
    ):  # fmt: skip
        file.write_text(text, encoding="utf-8")
        wrong = check("--config", str(file))
        assert wrong.returncode != 0
        assert says in wrong.stderr
        assert "Traceback" not in wrong.stderr


def test_a_worker_that_is_started_before_its_model_is_known(coder: Path) -> None:
    """The next launch takes it; without a model it ends with whoever has started it."""
    launch.prepare()
    ((process, _),) = launch._prepared
    spec: dict[str, Any] = {"file": str(coder), "engine": {}, "model": {}, "sampling": {}, "template": None}
    launch.launch_ahead(spec)
    taken, ours = launch.launch(spec)
    assert taken is process
    other, theirs = launch.launch(spec)
    assert other is not process
    launch.prepare()
    ((idle, end),) = launch._prepared
    launch._prepared.clear()
    for running, closing in ((process, ours), (other, theirs), (idle, end)):
        closing.close()
        assert running.wait(30) == 0

"""Presets over HTTP: several names of one model, which is loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.adapters import write_lora
from helpers.requests import post
from helpers.serving import Served, serving, wait_until
from helpers.twin import LETTERS, write_tiny_llama
from offgrid_llama.cli.app import run_app

SETTINGS = """
[[models]]
name = "tiny"
model = "{folder}/tiny.gguf"
template = "{{% for m in messages %}}{{{{ m.role }}}} {{{{ m.content }}}} {{% endfor %}}"
preload = true
sampling = {{ temperature = 0, logit_bias = {{ "20" = 100 }} }}

[[presets]]
name = "loud"
model = "tiny"
template = "{folder}/loud.jinja"
system = "Shout"
sampling = {{ logit_bias = {{ "21" = 100 }} }}

[[presets]]
name = "styled"
model = "tiny"
sampling = {{ logit_bias = {{}} }}
loras = {{ "{folder}/lora.gguf" = 1 }}

[[presets]]
name = "bare"
model = "tiny"
sampling = {{ logit_bias = {{}} }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presets")
    weights = write_tiny_llama(folder / "tiny.gguf", more={**LETTERS, "tokenizer.ggml.add_bos_token": True})
    write_lora(folder / "lora.gguf", weights, 0)
    (folder / "loud.jinja").write_text("{% for m in messages %}LOUD {{ m.content }} {% endfor %}", encoding="utf-8")
    (folder / "settings.toml").write_text(SETTINGS.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving("--config", str(folder / "settings.toml"), "--n-ctx", "1024") as served:
        yield served


def completed(served: Served, model: str, **more: Any) -> str:
    answer = post(served, "/v1/completions", {"model": model, "prompt": "abc", "max_tokens": 6, **more}).json()
    assert answer["model"] == model
    text: str = answer["choices"][0]["text"]
    return text


def test_one_model_with_several_names(served: Served) -> None:
    """All names are answered by one worker, which loads once, each with its own defaults; a request's own come first."""
    pids = served.worker_pids()
    texts = {name: completed(served, name) for name in ("tiny", "loud", "styled", "bare")}
    letters = "".join(LETTERS["tokenizer.ggml.tokens"][20:22])  # type: ignore[index, arg-type]
    assert texts["tiny"] == 6 * letters[0]
    assert texts["loud"] == 6 * letters[1]
    assert len({*texts.values()}) == 4
    assert completed(served, "loud", logit_bias={"20": 100}) == texts["tiny"]
    for name, more in (("styled", {}), ("bare", {"lora": [{"id": 0, "scale": 1}]})):
        answer = post(served, "/completion", {"model": name, "prompt": "abc", "n_predict": 6, **more})
        assert answer.json()["content"] == texts["styled"]
    assert completed(served, "bare", lora=[{"id": 0, "scale": 1}]) == texts["styled"]
    said = {"num_predict": 6, "lora": [{"id": 0, "scale": 1}]}
    asked = {"model": "bare", "prompt": "abc", "raw": True, "stream": False, "options": said}
    assert post(served, "/api/generate", asked).json()["response"] == texts["styled"]
    assert completed(served, "styled", lora=[]) == texts["bare"]
    asked = {"model": "bare", "input": "abc", "max_output_tokens": 16, "lora": [{"id": 1, "scale": 1}]}
    refused = post(served, "/v1/responses", asked).json()["error"]
    assert (refused["param"], "there is no adapter 1" in refused["message"]) == ("lora", True)
    assert served.worker_pids() == pids
    assert len(pids) == 1
    wait_until(lambda: sum("is ready" in line for line in served.log) == 1)


def test_templates(served: Served) -> None:
    """Each name has its template and its system message, wherever a conversation becomes a prompt."""
    said = {"messages": [{"role": "user", "content": "a"}]}
    prompts = {
        name: post(served, "/apply-template", {"model": name, **said}).json()["prompt"] for name in ("tiny", "loud")
    }
    assert prompts["tiny"].split() == ["user", "a"]
    assert prompts["loud"].split() == ["LOUD", "Shout", "LOUD", "a"]
    for path in ("/v1/chat/completions/input_tokens", "/v1/messages/count_tokens"):
        n = {name: post(served, path, {"model": name, **said}).json()["input_tokens"] for name in prompts}
        assert n["loud"] > n["tiny"]
    asked = {"model": "loud", "max_tokens": 4, **said}
    answer = post(served, "/v1/chat/completions", asked).json()
    assert answer["usage"]["prompt_tokens"] == n["loud"]
    assert httpx.get(f"{served.url}/props?model=loud", timeout=60).json()["chat_template"].startswith("{% for m in")
    assert "LOUD" in httpx.get(f"{served.url}/props?model=loud", timeout=60).json()["chat_template"]


def test_they_are_listed(served: Served) -> None:
    """By OpenAI's, Ollama's and Anthropic's API, and told in full."""
    models = served.models()
    router = httpx.get(f"{served.url}/models", timeout=60).json()["data"]
    assert [model["id"] for model in router] == [*models]
    assert {name: model.get("preset_of") for name, model in models.items()} == {
        "tiny": None, "loud": "tiny", "styled": "tiny", "bare": "tiny",
    }  # fmt: skip
    assert models["loud"]["pid"] == models["tiny"]["pid"]
    assert httpx.get(f"{served.url}/v1/models/LOUD", timeout=60).json()["preset_of"] == "tiny"
    tags = httpx.get(f"{served.url}/api/tags", timeout=60).json()["models"]
    assert {model["name"] for model in tags} == {f"{name}:latest" for name in models}
    shown = post(served, "/api/show", {"model": "loud"}).json()
    assert "LOUD" in shown["template"]
    assert "temperature" in shown["parameters"]
    page = httpx.get(f"{served.url}/v1/models", headers={"anthropic-version": "2023-06-01"}, timeout=60).json()
    assert {model["id"] for model in page["data"]} == {*models}


def test_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``serve --check`` tells the presets, and the file of a template that is not there."""
    assert run_app(["serve", "--check", "--config", str(folder / "settings.toml")]) == 0
    assert "preset          loud: of tiny" in capsys.readouterr().out
    wrong = folder / "wrong.toml"
    wrong.write_text(SETTINGS.format(folder=folder).replace("loud.jinja", "gone.jinja"), encoding="utf-8")
    assert run_app(["serve", "--check", "--config", str(wrong)]) != 0
    assert "gone.jinja" in capsys.readouterr().err

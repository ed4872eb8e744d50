"""llama-server's API on a real server: in passing, and in its manner."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.requests import post
from helpers.serving import MODEL, Served, events, serving

PROMPT = "The capital of France is"
GREEDY: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "n_predict": 8}


@pytest.fixture(scope="module")
def manner(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server in llama-server's manner, with two slots of 256 tokens."""
    folder = tmp_path_factory.mktemp("slots")
    with serving(
        "-m", str(smollm2_path), "-c", "512", "-np", "2", "-b", "64", "--alias", "small,b", "--metrics",
        "--slot-save-path", str(folder), "--seed", "42", command="llama-server",
    ) as served:  # fmt: skip
        yield served


def test_the_same_tokens_as_through_openais_api(server: Served) -> None:
    """The same request has the same text in both, and as an array of several prompts."""
    theirs = post(server, "/completion", GREEDY).json()
    ours = post(server, "/v1/completions", {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 8}).json()
    assert theirs["content"] == ours["choices"][0]["text"]
    several = post(server, "/completions", {**GREEDY, "prompt": [PROMPT, PROMPT]}).json()
    assert [each["content"] for each in several] == [theirs["content"]] * 2


def test_texts_and_tokens_in_one_prompt(server: Served) -> None:
    """They are one sequence, the same as the text that they make."""
    tokens = post(server, "/tokenize", {"content": " capital of"}).json()["tokens"]
    mixed = post(
        server, "/completion", {**GREEDY, "prompt": ["The", *tokens, " France is"], "return_tokens": True}
    ).json()
    plain = post(server, "/completion", {**GREEDY, "return_tokens": True}).json()
    assert (mixed["tokens"], mixed["prompt"]) == (plain["tokens"], PROMPT)
    assert len(plain["tokens"]) == 8


def test_a_prompt_alone(server: Served) -> None:
    """With n_predict 0 the prompt is computed, and the next request finds it."""
    prompt = f"{PROMPT} a city that I have not seen, and which is"
    body = post(server, "/completion", {"prompt": prompt, "n_predict": 0}).json()
    assert (body["content"], body["tokens_predicted"]) == ("", 0)
    again = post(server, "/completion", {**GREEDY, "prompt": prompt}).json()
    assert again["timings"]["cache_n"] == again["tokens_evaluated"] - 1


def test_probabilities(server: Served) -> None:
    """They are the model's, or with post_sampling_probs those from which the token was drawn, which add up to 1."""
    before = post(server, "/completion", {**GREEDY, "n_probs": 3}).json()["completion_probabilities"]
    assert [len(each["top_logprobs"]) for each in before] == [3] * 8
    after = post(
        server, "/completion", {"prompt": PROMPT, "n_predict": 3, "top_k": 2, "n_probs": 5, "post_sampling_probs": True}
    ).json()["completion_probabilities"]
    for each in after:
        assert 1 <= len(each["top_probs"]) <= 2
        assert sum(other["prob"] for other in each["top_probs"]) == pytest.approx(1)


def test_unknown_parameters_and_wrong_values(server: Served) -> None:
    """Errors have llama-server's shape: the status as code."""
    for wrong in (
        {"nonsense": 1},
        {"n_predict": -2},
        {"logit_bias": 5},
        {"prompt": 5},
        {"lora": [{"id": 3, "scale": 1}]},
    ):
        response = post(server, "/completion", {**GREEDY, **wrong})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == 400


def test_slots_and_properties(server: Served) -> None:
    """Both are told, and actions on files need a folder."""
    assert len(httpx.get(f"{server.url}/slots").json()) == 8
    assert httpx.get(f"{server.url}/props").json()["total_slots"] == 8
    refused = post(server, "/slots/0?action=save", {"filename": "a.bin"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    assert "offgrid-llama llama-server" in refused.json()["error"]["message"]
    assert post(server, "/props", {}).status_code == 403


def test_properties_in_its_manner(manner: Served) -> None:
    """A slot has its share of the context, and requests have the command line's defaults."""
    props = httpx.get(f"{manner.url}/props").json()
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (2, 256)
    assert props["default_generation_settings"]["params"]["seed"] == 42
    assert props["model_path"].endswith(".gguf")
    (model,) = httpx.get(f"{manner.url}/models").json()["data"]
    assert (model["id"], set(model["aliases"])) == ("b", {"b", "small"})


def test_a_slot_is_saved_restored_and_erased(manner: Served) -> None:
    """Tokens that one slot has computed are found by a request in another one, once they are restored there."""
    first = post(manner, "/completion", {**GREEDY, "id_slot": 1}).json()
    saved = post(manner, "/slots/1?action=save", {"filename": "one.bin"}).json()
    assert saved["n_saved"] == first["tokens_evaluated"] + 7
    assert post(manner, "/slots/1?action=erase", {}).json()["n_erased"] == saved["n_saved"]
    assert post(manner, "/completion", {**GREEDY, "id_slot": 1}).json()["timings"]["cache_n"] == 0
    post(manner, "/slots/1?action=erase", {})
    restored = post(manner, "/slots/0?action=restore", {"filename": "one.bin"}).json()
    assert (restored["n_restored"], restored["n_read"]) == (saved["n_saved"], saved["n_written"])
    again = post(manner, "/completion", {**GREEDY, "id_slot": 0}).json()
    assert (again["content"], again["timings"]["cache_n"]) == (first["content"], first["tokens_evaluated"] - 1)
    for name in ("../one.bin", "/etc/passwd", ".hidden", "none.bin"):
        assert post(manner, "/slots/0?action=restore", {"filename": name}).status_code == 400
    assert post(manner, "/slots/7?action=erase", {}).status_code == 400


def test_a_stream_tells_its_progress(manner: Served) -> None:
    """A prompt of several batches tells each, from the first to the last token."""
    body = {"prompt": "one two three " * 40, "n_predict": 2, "stream": True, "return_progress": True}
    with httpx.stream("POST", f"{manner.url}/completion", json=body, timeout=60) as response:
        found = [httpx.Response(200, text=data).json() for data in events(response)]
    progress = [each["prompt_progress"] for each in found if "prompt_progress" in each]
    assert len(progress) > 2
    assert (progress[0]["processed"], progress[-1]["processed"]) == (progress[0]["cache"], progress[-1]["total"])
    assert found[-1]["stop"]


def test_too_long_a_prompt(manner: Served) -> None:
    """Its error tells both numbers."""
    response = post(manner, "/completion", {"prompt": "word " * 400})
    told = response.json()["error"]
    assert (response.status_code, told["type"], told["n_ctx"]) == (400, "exceed_context_size_error", 256)
    assert told["n_prompt_tokens"] > 400


def test_openais_api_in_its_manner(manner: Served) -> None:
    """Unknown parameters and models are no errors, answers have timings, and errors have llama-server's shape."""
    body = {
        "model": "any",
        "nonsense": 1,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        "ignore_eos": True,
        "verbose": True,
    }
    found = post(manner, "/v1/chat/completions", body).json()
    assert found["timings"]["predicted_n"] == 4
    assert "<|im_start|>user\nHi" in found["__verbose"]["prompt"]
    text = post(manner, "/v1/completions", {"prompt": PROMPT, "max_tokens": 3, "ignore_eos": True}).json()
    assert (text["object"], text["timings"]["predicted_n"]) == ("text_completion", 3)
    wrong = post(manner, "/v1/chat/completions", {"messages": "no"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, 400)
    assert post(manner, "/v1/embeddings", {"input": "a"}).status_code == 501


def test_metrics_under_llama_servers_names(manner: Served) -> None:
    """They count what requests were told, with their types."""
    before = {name: manner.metric(f"llamacpp:{name}") for name in ("prompt_tokens_total", "tokens_predicted_total")}
    told = post(manner, "/completion", {**GREEDY, "prompt": "Something else"}).json()["timings"]
    text = httpx.get(f"{manner.url}/metrics").text
    assert "# TYPE llamacpp:n_decode_total counter" in text
    after = {name: manner.metric(f"llamacpp:{name}") for name in before}
    assert after["prompt_tokens_total"] - before["prompt_tokens_total"] == told["prompt_n"]
    assert after["tokens_predicted_total"] - before["tokens_predicted_total"] == 8


def test_flags_that_are_not_there() -> None:
    """The command names the flag, and ends."""
    done = subprocess.run(
        [sys.executable, "-m", "offgrid_llama.cli", "llama-server", "-m", "x.gguf", "--grp-attn-n", "2"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--grp-attn-n: this server has no such flag" in done.stderr

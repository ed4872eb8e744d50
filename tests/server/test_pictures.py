"""Pictures and sound in requests of every dialect, answered by a model that sees and hears."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.media_files import png, wav
from helpers.projectors import COLOURS, TONES
from helpers.serving import MODEL, Served, serving

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
ASK = "Repeat this word once:"


def url(word: str) -> str:
    return f"data:image/png;base64,{png(word)}"


def post(served: Served, path: str, body: dict[str, Any], status: int = 200) -> Any:
    answer = httpx.post(f"{served.url}{path}", json=body, timeout=240)
    assert answer.status_code == status, answer.text
    return answer.json()


def chat(part: dict[str, Any], **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": ASK}, part]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
    return {"model": "seeing", "messages": messages, "temperature": 0, "max_tokens": 12, **more}


@pytest.mark.parametrize("word", COLOURS)
def test_chat_completions(seeing: Served, word: str) -> None:
    """OpenAI's image_url, whole and streamed; the tokens of the picture are counted."""
    body = chat({"type": "image_url", "image_url": {"url": url(word), "detail": "low"}})
    whole = post(seeing, "/v1/chat/completions", body)
    text: str = whole["choices"][0]["message"]["content"]
    assert word.strip() in text
    lines = httpx.post(
        f"{seeing.url}/v1/chat/completions", json={**body, "stream": True}, timeout=240
    ).text.splitlines()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    assert "".join(delta.get("content") or "" for delta in deltas) == text
    without = post(seeing, "/v1/chat/completions", {**body, "messages": body["messages"][:1]})
    assert whole["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"] + 5


@pytest.mark.parametrize("word", TONES)
def test_input_audio(seeing: Served, word: str) -> None:
    """OpenAI's input_audio."""
    part = {"type": "input_audio", "input_audio": {"data": wav(word), "format": "wav"}}
    assert word.strip() in post(seeing, "/v1/chat/completions", chat(part))["choices"][0]["message"]["content"]


def test_responses(seeing: Served) -> None:
    """The Responses API's input_image and input_audio; an item is listed, and seen again in the next turn."""
    content: list[Any] = [{"type": "input_text", "text": ASK}, {"type": "input_image", "image_url": url(" cat")}]
    asked = {"model": "seeing", "instructions": SYSTEM, "temperature": 0, "max_output_tokens": 12}
    first = post(seeing, "/v1/responses", {**asked, "input": [{"role": "user", "content": content}]})
    assert "cat" in first["output"][0]["content"][0]["text"]
    listed = httpx.get(f"{seeing.url}/v1/responses/{first['id']}/input_items", timeout=60).json()["data"]
    assert listed[0]["content"][1]["image_url"] == url(" cat")
    again = post(seeing, "/v1/responses", {**asked, "input": "And again?", "previous_response_id": first["id"]})
    assert again["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    content[1] = {"type": "input_audio", "input_audio": {"data": wav(" dog"), "format": "wav"}}
    heard = post(seeing, "/v1/responses", {**asked, "input": [{"role": "user", "content": content}]})
    assert "dog" in heard["output"][0]["content"][0]["text"]


def test_anthropic(seeing: Served) -> None:
    """Anthropic's image block, in a message and in the result of a tool; it is counted, too."""
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png(" fish")}}
    asked = {"model": "seeing", "system": SYSTEM, "temperature": 0, "max_tokens": 12}
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": ASK}, block]}]
    answer = post(seeing, "/v1/messages", {**asked, "messages": messages})
    assert "fish" in answer["content"][0]["text"]
    counted = post(seeing, "/v1/messages/count_tokens", {"model": "seeing", "system": SYSTEM, "messages": messages})
    usage = answer["usage"]
    assert counted["input_tokens"] == usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    messages += [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [block]}]},
    ]
    longer = post(seeing, "/v1/messages/count_tokens", {"model": "seeing", "messages": messages})
    assert longer["input_tokens"] > counted["input_tokens"]


def test_ollama(seeing: Served) -> None:
    """Ollama's images, in a conversation and beside a prompt."""
    options = {"temperature": 0, "num_predict": 12}
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASK, "images": [png(" dog")]}]
    told = post(seeing, "/api/chat", {"model": "seeing", "messages": messages, "options": options, "stream": False})
    assert told["prompt_eval_count"] > 30
    asked = {"model": "seeing", "system": SYSTEM, "prompt": ASK, "options": options, "stream": False}
    seen = {post(seeing, "/api/generate", {**asked, "images": [png(word)]})["response"] for word in COLOURS}
    assert len(seen) > 1
    post(seeing, "/api/generate", {**asked, "images": [png(" dog")], "raw": True, "system": ""}, 400)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "data: URL"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "no PNG"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}, "base64"),
        ({"type": "image_url", "image_url": 5}, "image_url"),
        ({"type": "image_url"}, "image_url"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, "no WAV"),
        ({"type": "image", "image": "/etc/passwd"}, "image"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "video_url"),
    ],
)  # fmt: skip
def test_what_is_no_picture(seeing: Served, part: dict[str, Any], words: str) -> None:
    """It is a 400 that says where and why."""
    for stream in (False, True):
        error = post(seeing, "/v1/chat/completions", chat(part, stream=stream), 400)["error"]
        assert words in error["message"]
        assert "messages" in error["message"] + str(error["param"])


def test_a_damaged_picture(seeing: Served) -> None:
    """A file whose pixels are damaged is a 400, too."""
    data = bytearray(base64.b64decode(png(" dog", 64)))
    begin = data.index(b"IDAT") + 4
    data[begin : begin + 2] = bytes(2)  # no head of compressed data
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}
    post(seeing, "/v1/chat/completions", chat(part), 400)


def test_a_model_that_does_not_see(seeing: Served) -> None:
    """A picture for such a model is a 400 that says so."""
    body = {**chat({"type": "image_url", "image_url": {"url": url(" dog")}}), "model": "blind"}
    assert "no pictures" in post(seeing, "/v1/chat/completions", body, 400)["error"]["message"]


def test_what_is_told_of_the_model(seeing: Served) -> None:
    """/props says what it takes, and so do Ollama's capabilities."""
    props = httpx.get(f"{seeing.url}/props", params={"model": "seeing"}, timeout=60).json()
    assert props["modalities"] == {"vision": True, "audio": True}
    for name, expected in (("seeing", {"vision", "audio"}), ("blind", set())):
        shown = post(seeing, "/api/show", {"model": name})
        assert {"vision", "audio"} & set(shown["capabilities"]) == expected


def test_a_projector_that_is_not_there(tmp_path: Path) -> None:
    """A model with such a setting does not load, and the error names the file."""
    config = tmp_path / "settings.toml"
    config.write_text(f'[[models]]\nname = "seeing"\nmodel = "{MODEL}"\nprojector = "{tmp_path / "none.gguf"}"\n')
    with serving("--config", str(config), ready=False) as served:
        answer = httpx.post(f"{served.url}/v1/completions", json={"model": "seeing", "prompt": "a"}, timeout=60)
        assert answer.status_code >= 400
        assert "none.gguf" in answer.text + "\n".join(served.log)

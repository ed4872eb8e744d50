"""Embeddings, tokens and templates over HTTP."""

from __future__ import annotations

import base64
import math
import re
import struct
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import offgrid_llama as og
from helpers.requests import ASKED, post
from helpers.serving import MODEL, Served, serving

LONG = "hello world " * 5000
OPENAIS = r"This model's maximum context length is \d+ tokens\. However, you requested \d+ tokens "


def test_embeddings(client: openai.OpenAI, server: Served) -> None:
    """Vectors of length 1, the same as numbers and as base64; alike for texts that are alike."""
    texts = ["A cat sat on the mat.", "A cat is sitting on a mat.", "Stocks fell by two percent."]
    found = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    vectors = [each.embedding for each in found.data]
    assert found.usage.prompt_tokens > 10
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-4 for vector in vectors)
    raw = post(server, "/v1/embeddings", {"model": MODEL, "input": texts[0], "encoding_format": "base64"}).json()
    data = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(vectors[0], abs=1e-5)
    near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    assert near > far
    with pytest.raises(openai.BadRequestError, match=r"dimensions: .* have 576 values.* matryoshka") as error:
        client.embeddings.create(model=MODEL, input="a", dimensions=3)
    assert error.value.param == "dimensions"
    assert len(client.embeddings.create(model=MODEL, input="a", dimensions=576).data[0].embedding) == 576
    refused = post(server, "/v1/rerank", {"model": MODEL, "query": "a", "documents": ["b"]})
    assert refused.status_code == 400
    assert "rank" in refused.json()["error"]["message"]


def test_vectors_that_are_cut(smollm2_path: Path, tmp_path: Path) -> None:
    """A model whose settings say so gives the first values of its vectors, of length 1: any number, or those listed."""
    config = tmp_path / "settings.toml"
    config.write_text(
        f"[[models]]\nname = 'any'\nmodel = '{smollm2_path}'\nmatryoshka = true\n"
        f"[[models]]\nname = 'some'\nmodel = '{smollm2_path}'\nmatryoshka = [16, 64]\n",
        encoding="utf-8",
    )
    with serving("--config", str(config)) as served:
        ask: Any = {"input": ["A cat sat on the mat.", "Stocks fell."]}
        whole = [each["embedding"] for each in post(served, "/v1/embeddings", {"model": "any", **ask}).json()["data"]]
        for model, n in (("any", 3), ("any", 576), ("some", 16), ("some", 576)):
            found = post(served, "/v1/embeddings", {"model": model, "dimensions": n, **ask}).json()["data"]
            for vector, each in zip(whole, found, strict=True):
                length = math.hypot(*vector[:n])
                assert each["embedding"] == pytest.approx([value / length for value in vector[:n]], abs=1e-5)
        for model, n, says in (
            ("any", 577, "576 values"),
            ("some", 17, "16, 64, 576 values"),
            ("some", 577, "16, 64, 576"),
        ):
            refused = post(served, "/v1/embeddings", {"model": model, "dimensions": n, **ask})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "dimensions"
            assert says in refused.json()["error"]["message"]


def test_tokens_and_templates(server: Served) -> None:
    """Texts to tokens and back, and the prompt of a conversation."""
    text = "Hello, wörld 🦙"
    found = post(server, "/tokenize", {"content": text, "with_pieces": True}).json()["tokens"]
    tokens = [each["id"] for each in found]
    assert post(server, "/tokenize", {"content": text}).json()["tokens"] == tokens
    assert post(server, "/detokenize", {"tokens": tokens}).json()["content"] == text
    prompt = post(server, "/apply-template", {"messages": ASKED}).json()["prompt"]
    assert "<|im_start|>user\nWhat is 2+2?<|im_end|>" in prompt
    assert prompt.endswith("<|im_start|>assistant\n")


def test_tokens_as_vllm_tells_them(server: Served) -> None:
    """With ``prompt`` in place of ``content``: special tokens are read, and added; and what a tokenizer is made of."""
    text = "<|im_start|>user\nwörld"
    found = post(server, "/tokenize", {"model": MODEL, "prompt": text, "return_token_strs": True}).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["token_strs"][0] == "<|im_start|>"
    assert found["max_model_len"] > 512
    told = post(server, "/tokenize", {"prompt": text, "add_special_tokens": False}).json()
    assert (told["tokens"], told["token_strs"]) == (found["tokens"], None)
    assert post(server, "/detokenize", {"tokens": found["tokens"]}).json()["prompt"] == text
    info = httpx.get(f"{server.url}/tokenizer_info", params={"model": MODEL}, timeout=30).json()
    assert (info["bos_token"], info["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert "<|im_start|>" in info["chat_template"]
    for body in ({}, {"prompt": "a", "content": "a"}):
        refused = post(server, "/tokenize", body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "content")


def test_tokens_as_llama_cpp_python_tells_them(server: Served, smollm2: og.Model) -> None:
    """Special tokens are read in a text; their text is not told. The model is the first one where none is named."""
    text = "<|im_start|>user\nwörld 🦙"
    expected = smollm2.vocab.tokenize(text, add_special=True, parse_special=True)
    for body in ({"model": MODEL, "input": text}, {"input": text}):
        assert post(server, "/extras/tokenize", body).json() == {"tokens": expected}
        assert post(server, "/extras/tokenize/count", body).json() == {"count": len(expected)}
    for asked in ({"model": MODEL, "tokens": expected}, {"tokens": expected}):
        assert post(server, "/extras/detokenize", asked).json() == {"text": "user\nwörld 🦙"}
    assert post(server, "/extras/detokenize", {"tokens": []}).json() == {"text": ""}
    assert post(server, "/extras/tokenize", {"model": "none", "input": "a"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "message", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}, OPENAIS, "messages"),
        ("/v1/completions", {"prompt": ["a", LONG], "max_tokens": 5}, OPENAIS + r".* in prompt\[1\], 5 in", "prompt"),
        ("/v1/embeddings", {"input": LONG}, r"input\[0\] has \d+ tokens, more than 512$", "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, r"input\[1\] gives no tokens$", "input"),
        ("/v1/completions", {"prompt": [[1], [10**8]]}, r"prompt\[1\]\[0\] must be from 0 to", "prompt"),
        ("/tokenize", {"content": "a" * 2**21}, "content has", "content"),
        ("/tokenize", {"prompt": "a" * 2**21}, "prompt has", "prompt"),
        ("/extras/tokenize/count", {"input": "a" * 2**21}, "input has", "input"),
        ("/extras/detokenize", {"tokens": [1, 10**8]}, r"tokens\[1\] must be from 0 to", "tokens"),
        ("/detokenize", {"tokens": [10**8]}, r"tokens\[0\] must be from 0 to", "tokens"),
    ],
)  # fmt: skip
def test_errors_name_fields_of_the_request(
    server: Served, path: str, body: dict[str, Any], message: str, param: str
) -> None:
    """A worker's refusal names the client's own field; a text that is too long is told by the words that clients know."""
    refused = post(server, path, {"model": MODEL, **body})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, param)
    assert re.match(message, error["message"]), error["message"]
    is_long = "more than" in error["message"] or error["message"].startswith("This model's maximum")
    assert error["code"] == ("context_length_exceeded" if is_long else "invalid_value")

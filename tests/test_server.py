"""The server: what OpenAI's own client and plain HTTP get from it."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from serving import ALIAS, MODEL, Served, events, wait_until

ASKED: list[Any] = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def post(server: Served, path: str, body: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60, **options)


def test_a_conversation_is_answered(client: openai.OpenAI) -> None:
    """A real answer, with its usage, under the name that was asked for."""
    for model in (MODEL, ALIAS):
        reply = client.chat.completions.create(model=model, messages=ASKED, temperature=0, max_tokens=24)
        assert reply.model == model
        assert reply.object == "chat.completion"
        assert "4" in (reply.choices[0].message.content or "")
        assert reply.usage is not None
        assert reply.usage.prompt_tokens > 10
        assert 0 < reply.usage.completion_tokens <= 24
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert (reply.usage.prompt_tokens_details.cached_tokens or 0) > 0


def test_a_stream_is_the_same_answer(client: openai.OpenAI) -> None:
    """Chunks come one after the other, the role first, the reason last, then the usage; together they are the answer."""
    options: Any = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_events_of_a_stream(server: Served) -> None:
    """Server-sent events, of which the last is [DONE], not to be kept or gathered by anybody on the way."""
    body = {"model": ALIAS, "messages": [{"role": "user", "content": "Count to 10"}], "stream": True, "max_tokens": 32}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        found = list(events(response))
    assert found[-1] == "[DONE]"
    assert all(json.loads(each)["object"] == "chat.completion.chunk" for each in found[:-1])
    assert len(found) > 5


def test_the_asynchronous_client(server: Served) -> None:
    """Many at once, each its own answer, the same as alone."""

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": f"Say {word}."}], max_tokens=12, temperature=0
                )
                for word in ("one", "two", "three", "four") * 4
            ]
            return [reply.choices[0].message.content or "" for reply in await asyncio.gather(*asked)]

    found = asyncio.run(main())
    assert len(set(found)) > 1
    assert found[:4] * 4 == found


def test_what_a_request_may_say(client: openai.OpenAI) -> None:
    """Stop strings, several answers, seeds, biases, logprobs and a length, as OpenAI has them."""
    options: Any = {"model": MODEL, "messages": ASKED, "max_completion_tokens": 16}
    one, other = (client.chat.completions.create(**options, seed=7, temperature=1.2) for _ in range(2))
    assert one.choices[0].message.content == other.choices[0].message.content
    several = client.chat.completions.create(**options, n=3, seed=1, temperature=1.5)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) > 1
    stopped = client.chat.completions.create(**options, temperature=0, stop=["classic"])
    assert stopped.choices[0].finish_reason == "stop"
    assert "classic" not in (stopped.choices[0].message.content or "")
    told = client.chat.completions.create(**options, temperature=0, logprobs=True, top_logprobs=3)
    logprobs = told.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert "".join(each.token for each in logprobs.content) == told.choices[0].message.content
    assert all(each.logprob <= 0 and len(each.top_logprobs) == 3 for each in logprobs.content)
    assert logprobs.content[0].top_logprobs[0].token == logprobs.content[0].token
    plain = client.chat.completions.create(**options, temperature=0)
    first = post_tokens(client, (plain.choices[0].message.content or "")[:3])[0]
    biased = client.chat.completions.create(**options, temperature=0, logit_bias={str(first): -100})
    assert biased.choices[0].message.content != plain.choices[0].message.content
    streamed = list(client.chat.completions.create(**options, temperature=0, logprobs=True, stream=True))
    told_of = [each.token for chunk in streamed if chunk.choices and chunk.choices[0].logprobs
               for each in chunk.choices[0].logprobs.content or ()]  # fmt: skip
    assert "".join(told_of) == plain.choices[0].message.content


def post_tokens(client: openai.OpenAI, text: str) -> list[int]:
    url = str(client.base_url).removesuffix("v1/")
    return httpx.post(f"{url}tokenize", json={"content": text, "model": MODEL}, timeout=60).json()["tokens"]  # type: ignore[no-any-return]


def test_structured_output(client: openai.OpenAI) -> None:
    """A schema holds, also streamed, and one that cannot be held is refused with its place."""
    schema = {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "size": {"enum": ["S", "L"]}},
        "required": ["city", "size"], "additionalProperties": False,
    }  # fmt: skip
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    reply = client.chat.completions.create(
        model=MODEL, messages=ASKED, response_format=response_format, temperature=1, max_tokens=64
    )
    found = json.loads(reply.choices[0].message.content or "")
    assert set(found) == {"city", "size"}
    response_format["json_schema"]["schema"] = {**schema, "not": {"type": "object"}}
    with pytest.raises(openai.BadRequestError, match="not"):
        client.chat.completions.create(model=MODEL, messages=ASKED, response_format=response_format)


def test_tools(client: openai.OpenAI) -> None:
    """A call that is required comes whole and fits its schema, streamed or not; its result is fed back."""
    tool: Any = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
                "additionalProperties": False,
            },
        },
    }  # fmt: skip
    options: Any = {"model": MODEL, "messages": ASKED, "tools": [tool], "tool_choice": "required", "temperature": 0,
                    "parallel_tool_calls": False, "max_tokens": 96}  # fmt: skip
    reply = client.chat.completions.create(**options)
    assert reply.choices[0].finish_reason == "tool_calls"
    calls = reply.choices[0].message.tool_calls or []
    assert len(calls) == 1
    call = calls[0]
    assert call.type == "function"
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    name, arguments = "", ""
    for chunk in client.chat.completions.create(**options, stream=True):
        for delta in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices else ():
            assert delta.function is not None
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    assert (name, json.loads(arguments)) == ("weather", json.loads(call.function.arguments))
    answer: Any = [*ASKED, reply.choices[0].message.model_dump(exclude_none=True),
                   {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]  # fmt: skip
    last = client.chat.completions.create(**{**options, "messages": answer, "tool_choice": "none"})
    assert last.choices[0].message.content


def test_text_completions(client: openai.OpenAI) -> None:
    """One prompt or several, as text or tokens, with echo and logprobs, streamed or not."""
    prompt = "The capital of France is"
    options: Any = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    one = client.completions.create(prompt=prompt, **options, logprobs=2)
    assert "Paris" in one.choices[0].text
    assert one.choices[0].logprobs is not None
    assert one.choices[0].logprobs.tokens
    assert "".join(one.choices[0].logprobs.tokens) == one.choices[0].text
    tokens = post_tokens(client, prompt)
    for several in ([prompt, "One, two,"], [tokens, tokens]):
        found = client.completions.create(prompt=several, **options)
        assert [choice.index for choice in found.choices] == [0, 1]
        assert found.choices[0].text == one.choices[0].text
    echoed = client.completions.create(prompt=prompt, **options, echo=True)
    assert echoed.choices[0].text == prompt + one.choices[0].text
    streamed = client.completions.create(prompt=[prompt, prompt], **options, stream=True)
    texts = {0: "", 1: ""}
    for chunk in streamed:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == dict.fromkeys((0, 1), one.choices[0].text)
    with pytest.raises(openai.BadRequestError, match="fill in the middle"):
        client.completions.create(prompt=prompt, suffix="!", model=MODEL)


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
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model=MODEL, input="a", dimensions=3)
    refused = post(server, "/v1/rerank", {"model": MODEL, "query": "a", "documents": ["b"]})
    assert refused.status_code == 400
    assert "rank" in refused.json()["error"]["message"]


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


def test_models(client: openai.OpenAI, server: Served) -> None:
    """All are listed; one is loaded by the first who asks, told of, and unloaded without a request lost."""
    names = [model.id for model in client.models.list()]
    assert names == [MODEL, "gemma-3-270m"]
    assert client.models.retrieve(ALIAS).id == MODEL
    options: Any = {"model": "gemma-3-270m", "prompt": "The capital of France is", "max_tokens": 200, "temperature": 0}
    with client.completions.create(**options, stream=True) as stream:
        chunks = iter(stream)
        text = next(chunks).choices[0].text
        assert server.models()["gemma-3-270m"]["status"] == "ready"
        assert post(server, "/models/load/gemma-3-270m", {}).status_code == 200
        # The answer comes when the stream has ended, which goes on to its end.
        with ThreadPoolExecutor(1) as pool:
            unloaded = pool.submit(post, server, "/models/unload/gemma-3-270m", {})
            text += "".join(chunk.choices[0].text for chunk in chunks)
            assert unloaded.result().status_code == 200
    assert len(text) > 100
    assert server.models()["gemma-3-270m"]["status"] == "unloaded"
    assert post(server, "/v1/completions", {**options, "max_tokens": 4}).status_code == 200
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="../../etc/passwd", messages=ASKED)


def test_metrics_and_health(server: Served) -> None:
    """What was done is counted, memory is told of, and no text of anybody's is in there or in the log."""
    before = server.metric("offgrid_llama_tokens_total")
    secret = "xylophone-secret-word"
    asked = {"model": MODEL, "messages": [{"role": "user", "content": secret}], "max_tokens": 4}
    assert post(server, "/v1/chat/completions", asked).status_code == 200
    assert post(server, "/v1/chat/completions", {**asked, "stream": True}).text.endswith("data: [DONE]\n\n")
    assert server.metric("offgrid_llama_tokens_total") > before
    wait_until(lambda: server.metric("offgrid_llama_worker_memory_bytes") > 10**8)
    text = httpx.get(f"{server.url}/metrics", timeout=10).text
    for name in ("requests_total", "time_to_first_token_seconds_bucket", "inter_token_seconds_bucket",
                 "engine_prompt_tokens_cached_total", "requests_active"):  # fmt: skip
        assert f"offgrid_llama_{name}" in text
    assert secret not in text
    assert secret not in "\n".join(server.log)
    assert httpx.get(f"{server.url}/health", timeout=10).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": ASKED, "temperature": 3}, "temperature"),
        ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {"messages": ASKED, "n": 9}, "n"),
        ("/v1/chat/completions", {"messages": ASKED, "stop": ["a"] * 17}, "stop"),
        ("/v1/chat/completions", {"messages": ASKED, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/v1/chat/completions", {"messages": ASKED, "top_logprobs": 2}, "logprobs"),
        ("/v1/chat/completions", {"messages": ASKED, "stream_options": {}}, "stream_options"),
        ("/v1/chat/completions", {"messages": ASKED, "wibble": 1}, "Unrecognized request argument supplied: wibble"),
        ("/v1/chat/completions", {"messages": ASKED * 1025}, "messages"),
        ("/v1/chat/completions", {"messages": ASKED, "logit_bias": {"x": 1}}, "logit_bias"),
        ("/v1/chat/completions", {"messages": ASKED, "logit_bias": {"99999999": 1}}, "logit_bias"),
        ("/v1/chat/completions", {"messages": ASKED, "tool_choice": "required"}, None),
        ("/v1/chat/completions", {"messages": ASKED, "grammar": "root ::= ("}, "grammar"),
        ("/v1/chat/completions", {"messages": ASKED, "grammar": "root ::= " + "a" * 70_000}, "grammar"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a " * 6000}]}, "tokens"),
        ("/v1/completions", {"prompt": [99999999]}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [99999999]}, "token"),
        ("/apply-template", {"messages": [{"content": "a"}]}, "role"),
        ("/apply-template", {"messages": ASKED, "chat_template_kwargs": {"a": 2**64}}, "64 bits"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a", "b": -(2**70)}]}, "64 bits"),
    ],
)  # fmt: skip
def test_what_is_refused(server: Served, path: str, body: dict[str, Any], says: str | None) -> None:
    """A bad request is told what is wrong with it, in OpenAI's shape, and nothing is computed for it."""
    response = post(server, path, {"model": MODEL, "max_tokens": 1, **body} if "v1/c" in path else body)
    if says is None:
        assert response.status_code == 200
        return
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_openapi(server: Served) -> None:
    """The description names every endpoint."""
    paths = httpx.get(f"{server.url}/openapi.json", timeout=10).json()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/rerank", "/tokenize",
                 "/detokenize", "/apply-template", "/health", "/metrics"):  # fmt: skip
        assert path in paths

"""Chat and text completions, as OpenAI's own client and plain HTTP get them."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import openai
import pytest

from helpers.requests import ASKED
from helpers.serving import ALIAS, MODEL, Served, events


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


def test_what_of_a_schema_is_not_held(client: openai.OpenAI) -> None:
    """A tool of a third party, with rules that no grammar can hold, is called; the response says which these are."""
    number = {"type": "integer", "format": "uint", "minimum": 10, "maximum": 99, "not": {"const": 3}}  # which holds
    parameters = {"type": "object", "properties": {"n": number}}
    tool: Any = {"type": "function", "function": {"name": "count", "parameters": {**parameters, "required": ["n"]}}}
    options: Any = {"model": MODEL, "messages": ASKED, "tools": [tool], "tool_choice": "required", "max_tokens": 40}
    told = ["tool count: not held: /properties/n/not: 'not' is not supported"]
    reply = client.chat.completions.create(**options, parallel_tool_calls=False)
    assert reply.model_extra == {"warnings": told}
    assert reply.choices[0].message.tool_calls
    *others, last = client.chat.completions.create(**options, stream=True)
    assert last.model_extra == {"warnings": told}
    assert not any(chunk.model_extra for chunk in others)
    assert not client.chat.completions.create(**{**options, "tool_choice": "none"}).model_extra


def test_a_call_that_breaks_a_rule(client: openai.OpenAI) -> None:
    """It is given, whole and streamed, and the warnings name its tool, its id, the place and the rule."""
    parameters = {"type": "object", "properties": {"n": {"enum": [3], "not": {"const": 3}}}, "required": ["n"]}
    tool: Any = {"type": "function", "function": {"name": "count", "parameters": parameters}}
    options: Any = {"model": MODEL, "messages": ASKED, "tools": [tool], "tool_choice": "required", "max_tokens": 40}
    held = "tool count: not held: /properties/n/not: 'not' is not supported"
    reply = client.chat.completions.create(**options, parallel_tool_calls=False)
    call = (reply.choices[0].message.tool_calls or [])[0]
    assert json.loads(call.function.arguments) == {"n": 3}
    broken = "tool count: call {} is not valid: /n: not: 3 should not be valid under {{'const': 3}}"
    assert reply.model_extra == {"warnings": [held, broken.format(call.id)]}
    *others, last = client.chat.completions.create(**options, parallel_tool_calls=False, stream=True)
    ids = [call.id for chunk in [*others, last] for call in chunk.choices[0].delta.tool_calls or () if call.id]
    assert len(ids) == 1
    assert last.model_extra == {"warnings": [held, broken.format(ids[0])]}
    assert not any(chunk.model_extra for chunk in others)


def test_events_of_a_stream(server: Served) -> None:
    """Server-sent events, the last of which is [DONE]; proxies must neither store nor collect them."""
    asked = [{"role": "user", "content": "Count to 10"}]
    body = {"model": ALIAS, "messages": asked, "stream": True, "max_tokens": 32, "temperature": 0}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        found = list(events(response))
    assert found[-1] == "[DONE]"
    chunks = [json.loads(each) for each in found[:-1]]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert sum(bool(choice["delta"].get("content")) for chunk in chunks for choice in chunk["choices"]) > 1


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
        model=MODEL, messages=ASKED, response_format=response_format, temperature=1, seed=1, max_tokens=200
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
    client.chat.completions.create(**options)  # now both answers begin from the same cached prompt, rounded alike
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


LINES = """
start: "*** Begin" LF line~1..3 "*** End"
line: ("+" | "-") /[a-z "]{1,8}/ LF
%import common.LF
"""


@pytest.mark.parametrize(
    ("syntax", "definition", "matches"),
    [
        ("regex", '[0-9]{3}-"[a-z]{2}"', r'[0-9]{3}-"[a-z]{2}"'),
        ("lark", LINES, r'\*\*\* Begin\n([+-][a-z "]{1,8}\n)+\*\*\* End'),
    ],
)
def test_custom_tools(client: openai.OpenAI, syntax: str, definition: str, matches: str) -> None:
    """The text of a call matches the tool's grammar, in chat completions, whole and streamed, and in responses."""
    grammar = {"syntax": syntax, "definition": definition}
    tool: Any = {"type": "custom", "custom": {"name": "note", "format": {"type": "grammar", "grammar": grammar}}}
    options: Any = {
        "model": MODEL, "messages": ASKED, "tools": [tool], "tool_choice": {"type": "custom", "custom": {"name": "note"}},
        "temperature": 1.5, "seed": 3, "max_tokens": 400, "parallel_tool_calls": False,
    }  # fmt: skip
    reply = client.chat.completions.create(**options)
    assert reply.choices[0].finish_reason == "tool_calls"
    calls: Any = reply.choices[0].message.tool_calls
    (call,) = calls
    assert call.type == "custom"
    assert call.custom.name == "note"
    assert re.fullmatch(matches, call.custom.input)
    text = ""
    for chunk in client.chat.completions.create(**options, stream=True):
        for delta in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices else ():
            text += delta.to_dict()["custom"]["input"]
    assert re.fullmatch(matches, text)
    answer: Any = [*ASKED, reply.choices[0].message.model_dump(exclude_none=True),
                   {"role": "tool", "tool_call_id": call.id, "content": "Done."}]  # fmt: skip
    assert client.chat.completions.create(**{**options, "messages": answer, "tool_choice": "none"}).choices[0].message
    flat: Any = {"type": "custom", "name": "note", "format": {"type": "grammar", **grammar}}
    chosen: Any = {"type": "custom", "name": "note"}
    found = client.responses.create(
        model=MODEL, input="Hi.", tools=[flat], tool_choice=chosen, temperature=1.5, max_output_tokens=400,
        parallel_tool_calls=False, extra_body={"seed": 3},
    )  # fmt: skip
    (item,) = found.output
    assert item.type == "custom_tool_call"
    assert re.fullmatch(matches, item.input)


STRUCTURES: Any = [{"begin": "e=", "schema": {"type": "integer", "minimum": 10, "maximum": 99}, "end": ";"}]
TAGS: Any = {"type": "structural_tag", "structures": STRUCTURES, "triggers": ["e"]}
TRIGGERED: Any = {
    "type": "structural_tag",
    "format": {
        "type": "triggered_tags", "triggers": ["e"],
        "tags": [{"begin": "e=", "content": {"type": "json_schema", "json_schema": STRUCTURES[0]["schema"]}, "end": ";"}],
    },
}  # fmt: skip


@pytest.mark.parametrize("tags", [TAGS, TRIGGERED], ids=["structures", "format"])
def test_structural_tags(client: openai.OpenAI, tags: Any) -> None:
    """Wherever a trigger comes, here each letter e, its tag follows; in chats and completions, in both of vLLM's forms."""
    options: Any = {"model": MODEL, "max_tokens": 60, "temperature": 1, "seed": 5}
    chat = client.chat.completions.create(**options, messages=ASKED, extra_body={"response_format": tags})
    asked: Any = {"structured_outputs": {"structural_tag": json.dumps(tags)}}
    text = client.completions.create(**options, prompt="Once upon a time", extra_body=asked)
    for found in (chat.choices[0].message.content or "", text.choices[0].text):
        assert re.fullmatch(r"([^e]|e=[1-9][0-9];)*(e|e=|e=[1-9]|e=[1-9][0-9])?", found)
    assert "e=" in text.choices[0].text
    for wrong in ({**TAGS, "triggers": ["f"]}, {"type": "structural_tag"}):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**options, messages=ASKED, extra_body={"response_format": wrong})
        with pytest.raises(openai.BadRequestError):
            client.completions.create(
                **options, prompt="a", extra_body={"structured_outputs": {"structural_tag": json.dumps(wrong)}}
            )


def test_a_single_tag(client: openai.OpenAI) -> None:
    """With both flags, the answer is one tag and nothing else."""
    tags = {**TRIGGERED, "format": {**TRIGGERED["format"], "at_least_one": True, "stop_after_first": True}}
    reply = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=60, temperature=1, seed=5, extra_body={"response_format": tags}
    )
    assert re.fullmatch(r"e=[1-9][0-9];", reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"


def test_prompt_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    """The prompt is the rendered conversation: its control tokens have logprobs, too."""
    reply = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=1, n=2, extra_body={"prompt_logprobs": 1}
    ).to_dict()
    usage: Any = reply["usage"]
    told: Any = reply["prompt_logprobs"]
    assert len(told) == usage["prompt_tokens"]
    assert told[0] is None
    assert all(each["logprob"] <= 0 for at in told[1:] for each in at.values())
    texts = [next(iter(at.values()))["decoded_token"] for at in told[1:]]
    assert "<|im_end|>" in texts
    assert "".join(texts).endswith("<|im_start|>assistant\n")


def test_predictions(client: openai.OpenAI) -> None:
    """A text that is expected changes nothing but the time; the usage tells how much of it came, and how much did not."""
    options: Any = {"model": MODEL, "messages": ASKED, "max_tokens": 32, "temperature": 0}
    plain = client.chat.completions.create(**options)
    assert plain.usage is not None
    assert plain.usage.completion_tokens_details is None
    text = plain.choices[0].message.content or ""
    parts = [{"type": "text", "text": text}, {"type": "text", "text": " Aha, aha, aha."}]
    for content in (text, parts):
        predicted: Any = {"type": "content", "content": content}
        found = client.chat.completions.create(**options, prediction=predicted)
        assert found.choices[0].message.content == text
        assert found.usage is not None
        details = found.usage.completion_tokens_details
        assert details is not None
        assert details.accepted_prediction_tokens in range(1, found.usage.completion_tokens + 1)
        assert (details.rejected_prediction_tokens or 0) >= (3 if content is parts else 0)


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

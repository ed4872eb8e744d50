"""The cases of chat_cases.json: what llama.cpp expects of messages in the formats of its templates, against our readers."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.message_reader import MessageReader
from offgrid_llama.chat.reasoning import Reasoning, find_reasoning, opened
from offgrid_llama.chat.tools.call_format import Slot, ToolFormat
from offgrid_llama.chat.tools.call_probe import find_tool_format
from offgrid_llama.chat.tools.call_reader import ToolReader
from offgrid_llama.chat.tools.deltas import gathered
from offgrid_llama.chat.tools.tool import Tool

HERE = Path(__file__).parents[1]
TEMPLATES = HERE.parent / "vendor/llama.cpp/models/templates"
DATA: dict[str, Any] = json.loads((HERE / "data/chat_cases.json").read_text(encoding="utf-8"))
CASES: list[dict[str, Any]] = DATA["cases"]
CONTROLS = {"LFM2-8B-A1B.jinja": ["<|tool_call_start|>"], "LFM2.5-Instruct.jinja": ["<|tool_call_start|>"]}
"""Control tokens of models, where their templates do not show them."""

NOT_AS_EXPECTED: dict[str, list[int]] = {
    "reasoning that is not asked for apart begins with what the prompt has opened it with": [1, 36, 52],
    "a call within reasoning that was not closed: it is reasoning, until it is": [10, 11, 171, 188, 190, 197],
    "an answer under a schema in a block of Markdown: a grammar keeps that from being written": [31, 402],
    "marks of reasoning behind the answer, or twice before it": [86, 87, 88, 89],
    "the template iterates over the tools, also where there are none: jinja2 refuses that": [98, 340, 342, 372, 374],
    "answers stand between marks that are words": [209, 210, 211, 213, 214, 215, 216, 217],
    "the template appends to a list: the sandbox refuses that, as that of transformers does": [
        219, 220, 221, 222, 223, 224, 225, 226, 227, 228, 229, 230, 236,
    ],
    "reasoning that the template does not know": [237, 238],
    "values within values stand between tags of their own": [325, 326, 327, 329],
    "the template needs variables that only its own model's documentation names": [352, 353, 354],
    "the template writes a generator as JSON: jinja2 refuses that": [361],
    "reasoning begins with words of the prompt, which are not the model's": [390, 391],
    "parts of a message: reasoning that is not asked for apart has no marks": [419],
    "parts of a message: reasoning that is continued": [433],
}  # fmt: skip
"""Numbers of the cases in which we give something else, by why."""


@functools.cache
def known(name: str) -> tuple[ChatTemplate, ToolFormat, Reasoning | None]:
    """Return a template of llama.cpp, and what we find out about it."""
    source = (TEMPLATES / name).read_text(encoding="utf-8")
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", name=name)
    reasoning = find_reasoning(template)
    return template, find_tool_format(template, reasoning, CONTROLS.get(name, ())), reasoning


def tools_of(case: dict[str, Any]) -> list[Tool]:
    """Return the tools of a case."""
    described = [DATA["tools"][i] for i in case["tools"]]
    return [Tool(each["name"], "", json.loads(each["parameters"])) for each in described]


def shown(name: str, text: str) -> str:
    """Return a text without the control tokens that an engine would not show."""
    template, form, reasoning = known(name)
    kept = "".join(form.texts) + ("" if reasoning is None else reasoning.begin + reasoning.end)
    marks = set(re.findall(r"<\|\w+\|>", template.source))
    for mark in marks:
        if mark not in kept:
            text = text.replace(mark, "")
    return text


def read(case: dict[str, Any], step: int) -> dict[str, Any]:
    """Return what our readers make of a case, fed ``step`` characters at a time."""
    template, form, reasoning = known(case["template"])
    tools = tools_of(case)
    messages = [_message(message, form) for message in case.get("messages", [])] or [
        {"role": "user", "content": "Hey there!"}
    ]
    variables: dict[str, Any] = {"enable_thinking": bool(case.get("thinking", 1))}
    if tools:
        variables["tools"] = [tool.as_dict() for tool in tools]
    begun: dict[str, Any] = {}
    if case.get("continued"):
        begun = messages.pop()
    inside, _ = opened(template.parts(messages, **variables), reasoning)
    if case.get("continued") == 3:
        inside = False
    if not case["split"]:
        reasoning, inside = None, False
    inside = inside or case.get("continued") == 2
    tool_reader = ToolReader(form, tools, lambda index: "") if tools or form.headers is not None else None
    reader = MessageReader(reasoning, inside=inside, tools=tool_reader)
    thought = begun.get("reasoning_content", "") if reasoning is not None else ""
    if case.get("continued") == 2:
        thought = reader.push(thought).reasoning
    text = shown(case["template"], case["input"])
    told = [reader.push(text[at : at + step]) for at in range(0, len(text), step)]
    told.append(reader.finish())
    calls = gathered(delta for each in told for delta in each.calls)
    return {
        "reasoning": thought + "".join(each.reasoning for each in told),
        "content": begun.get("content", "") + "".join(each.content for each in told),
        "tool_calls": [dataclasses.asdict(call) for call in calls],
    }


def _message(message: dict[str, Any], form: ToolFormat) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message["role"], "content": message.get("content", "")}
    if "reasoning" in message:
        made["reasoning_content"] = message["reasoning"]
    if "tool_call_id" in message:
        made["tool_call_id"] = message["tool_call_id"]
    if "tool_calls" in message:
        calls = message["tool_calls"]
        made["tool_calls"] = [
            {"type": "function", "id": call["id"], "function": {
                "name": call["name"], "arguments": call["arguments"] if form.as_text else json.loads(call["arguments"]),
            }}
            for call in calls
        ]  # fmt: skip
    return made


def same(case: dict[str, Any], found: dict[str, Any]) -> bool:
    """Return whether a message is as expected, but for spaces around texts and in JSON, and ids that no model wrote."""
    expected = case["expect"]
    for key in ("content", "reasoning"):
        if expected.get(key, "").strip() != found[key].strip():
            return False
    form, calls = known(case["template"])[1], expected.get("tool_calls", [])
    has_ids = bool({Slot.ID, Slot.PATH} & set(form.call[: form.call.index(Slot.ARGUMENTS)]))
    if len(calls) != len(found["tool_calls"]):
        return False
    for one, other in zip(calls, found["tool_calls"], strict=True):
        if one["name"] != other["name"] or (has_ids and one["id"] and one["id"] != other["id"]):
            return False
        if _json(one["arguments"]) != _json(other["arguments"]):
            return False
    return True


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return "".join(text.split())

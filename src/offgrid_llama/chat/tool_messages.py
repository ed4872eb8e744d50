"""Conversations with calls and their results, made into what a template knows (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from offgrid_llama.chat.tool import Tool
from offgrid_llama.chat.tool_format import ToolFormat

__all__ = ["tool_messages", "tools_described"]


def tool_messages(messages: Sequence[Mapping[str, Any]], form: ToolFormat) -> list[dict[str, Any]]:
    """Return messages with calls and results as a template takes them.

    Where it writes no calls, they become what the model would have written, and results what a user says.

    Raises ValueError and TypeError that name the place for calls of another shape than OpenAI's, and for a result that
    belongs to no call.
    """
    made: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for at, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = _calls(message["tool_calls"], f"messages[{at}]['tool_calls']")
            names |= {id_: name for name, _, id_ in calls}
            made.append(_calling(message, calls, form))
        elif message.get("role") == "tool":
            id_ = message.get("tool_call_id")
            if id_ is not None and id_ not in names:
                raise ValueError(f"messages[{at}]['tool_call_id'] is that of no call before: {id_!r}")
            if form.written:
                made.append(
                    {
                        **({"name": names[id_]} if id_ is not None else {}),
                        **message,
                        "content": message.get("content") or "",
                    }
                )
                continue
            answered = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
            if made and made[-1].get("role") == "user" and messages[at - 1].get("role") == "tool":
                made[-1]["content"] += f"\n{answered}"
            else:
                made.append({"role": "user", "content": answered})
        else:
            made.append(dict(message))
    return made


def _calling(
    message: Mapping[str, Any], calls: Sequence[tuple[str, dict[str, Any], str]], form: ToolFormat
) -> dict[str, Any]:
    """Return a message with calls as a template takes it."""
    content = message.get("content")
    if not form.written:
        rest = {key: value for key, value in message.items() if key != "tool_calls"}
        return {**rest, "content": "\n".join(text for text in (content, form.write(calls)) if text)}
    described = [
        {"type": "function", "id": id_, "function": {
            "name": name, "arguments": json.dumps(arguments, ensure_ascii=False) if form.as_text else arguments,
        }}
        for name, arguments, id_ in calls
    ]  # fmt: skip
    return {**message, "content": content or form.content, "tool_calls": described}


def _calls(calls: object, where: str) -> list[tuple[str, dict[str, Any], str]]:
    """Return name, arguments and id of each call."""
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise TypeError(f"{where} must be a list, not {type(calls).__name__}")
    found = []
    for at, call in enumerate(calls):
        described = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(described, Mapping) or not isinstance(described.get("name"), str):
            raise ValueError(f"{where}[{at}] must be {{'id': ..., 'type': 'function', 'function': {{'name': ...}}}}")
        arguments = described.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError as error:
                raise ValueError(f"{where}[{at}]: the arguments are no JSON: {error}") from None
        if not isinstance(arguments, Mapping):
            raise TypeError(f"{where}[{at}]: the arguments must be an object, not {type(arguments).__name__}")
        found.append((described["name"], dict(arguments), str(call.get("id") or "")))
    return found


def tools_described(tools: Sequence[Tool], form: ToolFormat) -> str:
    """Return what tells a model of tools whose template does not."""
    functions = "\n".join(json.dumps(tool.as_dict()["function"], ensure_ascii=False) for tool in tools)
    call = form.write([("function_name", {"argument_name": "value"}, "abcdefghi")])
    return (
        "You may call functions to help with what the user asks. These are the functions that there are, one JSON object "
        f"each:\n<tools>\n{functions}\n</tools>\nTo call a function, write this, with its name and arguments in place of "
        f"these, and nothing behind it:\n{call.strip()}"
    )

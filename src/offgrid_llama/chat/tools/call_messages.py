"""Conversations with calls and their results, made into what a template knows (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from offgrid_llama.text.json_text import plain_value, read_json_text

from .call_format import ToolFormat
from .tool import Tool

__all__ = ["read_calls", "tool_messages", "tools_described"]


def read_calls(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose calls have an id and a dict of arguments, and whose results have the id and the name of theirs.

    Some clients leave ids out: then calls are numbered, and the results are those of the calls in their order.

    Raises ValueError and TypeError that name the place for calls of another shape than OpenAI's, and for a result that
    belongs to no call.
    """
    read: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    waiting: list[str] = []
    for at, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = _with_ids(_calls(message["tool_calls"], f"messages[{at}]['tool_calls']"), at)
            waiting = [call["id"] for call in calls]
            names |= {call["id"]: call["function"]["name"] for call in calls}
            read.append({**message, "tool_calls": calls})
        elif message.get("role") == "tool":
            id_ = message.get("tool_call_id") or next(iter(waiting), None)
            waiting = [each for each in waiting if each != id_]
            read.append({**message, **_name_of_result(id_, names, at)})
        else:
            read.append(dict(message))
    return read


def tool_messages(messages: Sequence[Mapping[str, Any]], form: ToolFormat) -> list[dict[str, Any]]:
    """Return messages that ``read_calls`` gave with calls and results as a template takes them.

    Where the template writes no calls, they become the text that the model would have written, and results a user's text.
    """
    made: list[dict[str, Any]] = []
    for at, message in enumerate(messages):
        if message.get("tool_calls"):
            made.append(_calling(message, _calls(message["tool_calls"], ""), form))
        elif message.get("role") != "tool":
            made.append(dict(message))
        elif form.writes_calls:
            made.append({**message, "content": message.get("content") or ""})
        else:
            _add_result_as_text(made, message, goes_on=at > 0 and messages[at - 1].get("role") == "tool")
    return made


def _with_ids(calls: Sequence[tuple[str, Any, str]], at: int) -> list[dict[str, Any]]:
    """Return calls in OpenAI's shape; those without an id are numbered, by the place of their message, too."""
    return [_described((name, arguments, id_ or f"{at:05}{n:04}")) for n, (name, arguments, id_) in enumerate(calls)]


def _described(call: tuple[str, Any, str]) -> dict[str, Any]:
    name, arguments, id_ = call
    return {"type": "function", "id": id_, "function": {"name": name, "arguments": arguments}}


def _name_of_result(id_: str | None, names: Mapping[str, str], at: int) -> dict[str, str]:
    """Return the id and the tool's name of a result; nothing for a result without an id."""
    if id_ is None:
        return {}
    if id_ not in names:
        raise ValueError(f"messages[{at}]['tool_call_id'] belongs to no call before it: {id_!r}")
    return {"tool_call_id": id_, "name": names[id_]}


def _add_result_as_text(made: list[dict[str, Any]], message: Mapping[str, Any], *, goes_on: bool) -> None:
    """Add a result as a user's text; to the text of the result before, if one came just before."""
    answered = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
    if goes_on and made and made[-1].get("role") == "user":
        made[-1]["content"] += f"\n{answered}"
    else:
        made.append({"role": "user", "content": answered})


def _calling(
    message: Mapping[str, Any], calls: Sequence[tuple[str, dict[str, Any], str]], form: ToolFormat
) -> dict[str, Any]:
    """Return a message with calls as a template takes it."""
    content = message.get("content")
    if not form.writes_calls:
        rest = {key: value for key, value in message.items() if key != "tool_calls"}
        return {**rest, "content": "\n".join(text for text in (content, form.write(calls)) if text)}
    described = [
        _described((name, json.dumps(arguments, ensure_ascii=False) if form.as_text else arguments, id_))
        for name, arguments, id_ in calls
    ]
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
        arguments = _arguments(described.get("arguments") or {}, f"{where}[{at}]")
        found.append((described["name"], arguments, str(call.get("id") or "")))
    return found


def _arguments(arguments: object, where: str) -> dict[str, Any]:
    """Return the arguments of a call, which may be JSON text. Some clients write null, or nothing, where there are none."""
    if isinstance(arguments, str) and not arguments.strip():
        return {}
    if isinstance(arguments, str):
        try:
            arguments = read_json_text(arguments)
        except ValueError as error:
            raise ValueError(f"{where}: the arguments are no JSON: {error}") from None
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise TypeError(f"{where}: the arguments must be an object, not {type(arguments).__name__}")
    try:
        return dict(plain_value(arguments))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: the arguments: {error}") from None


def tools_described(tools: Sequence[Tool], form: ToolFormat) -> str:
    """Return a text that tells a model of tools, for templates that do not."""
    functions = "\n".join(json.dumps(tool.as_dict()["function"], ensure_ascii=False) for tool in tools)
    call = form.write([("function_name", {"argument_name": "value"}, "abcdefghi")])
    return (
        "You may call functions to help with what the user asks. These functions are available, one JSON object "
        f"each:\n<tools>\n{functions}\n</tools>\nTo call a function, write this, with its name and arguments in place of "
        f"these, and nothing behind it:\n{call.strip()}"
    )

"""The functions of tools, called for a model: their results, or their errors, which the model may be able to react to."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

from offgrid_llama.chat.tools.tool import Tool, ToolCall
from offgrid_llama.native.check import is_async

__all__ = ["refuse_async", "result", "results_async"]

MAX_TOLD_CHARACTERS = 2000
"""Of an error; the rest of a longer one would fill the context."""
_ASYNC_TOOL = "the tool {} is async: use Chat.run_async, which awaits it"


def refuse_async(tools: Sequence[Tool]) -> None:
    """Raise TypeError for a tool that must be awaited."""
    for tool in tools:
        if is_async(tool.function):
            raise TypeError(_ASYNC_TOOL.format(tool.name))


def result(call: ToolCall, tools: Sequence[Tool]) -> Any:
    """Return the result of a call, as JSON or a text; an error becomes a text.

    Raises TypeError for a result that must be awaited.
    """
    try:
        found = call.run(tools)
    except Exception as error:
        return _told(error)
    if inspect.isawaitable(found):
        if inspect.iscoroutine(found):
            found.close()  # it would warn that nothing has awaited it
        raise TypeError(_ASYNC_TOOL.format(call.name))
    return _as_json(found)


async def results_async(calls: Sequence[ToolCall], tools: Sequence[Tool]) -> list[Any]:
    """Return the results of calls that run at the same time: async functions are awaited, others run in threads."""
    import asyncio

    return await asyncio.gather(*(_result_async(call, tools) for call in calls))


async def _result_async(call: ToolCall, tools: Sequence[Tool]) -> Any:
    import asyncio

    tool = next((tool for tool in tools if tool.name == call.name), None)
    try:
        if tool is None or not is_async(tool.function):
            found = await asyncio.to_thread(call.run, tools)
        elif tool.is_checked:  # which may take a second
            found = (await asyncio.to_thread(call.prepared, tools))()
        else:
            found = call.run(tools)
        if inspect.isawaitable(found):
            found = await found
    except Exception as error:
        return _told(error)
    return _as_json(found)


def _as_json(found: Any) -> Any:
    """Return a result that a message can have."""
    try:
        json.dumps(found)
    except Exception as error:
        return _told(error)
    return found


def _told(error: Exception) -> str:
    """Return what the model is told of an error, which may have any message, or none that can be had."""
    try:
        message = str(error)
    except Exception:
        message = "no message"
    told = f"{type(error).__name__}: {message}"
    return told if len(told) <= MAX_TOLD_CHARACTERS else f"{told[:MAX_TOLD_CHARACTERS]}..."

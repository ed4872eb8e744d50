"""Pydantic AI's messages as an Engine takes them, and its answers as parts of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.usage import RequestUsage

from offgrid_llama.chat.tools.tool import ToolCall
from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.integrations.contents import content_of, media_part

if TYPE_CHECKING:
    from offgrid_llama.engine.chat_completion import ChatCompletion

__all__ = ["FINISH_REASONS", "SYSTEM", "details_of", "instructions_of", "messages_of", "parts_of", "usage_of"]

SYSTEM = "offgrid-llama"
"""The name under which Pydantic AI and its tracers know these models."""

FINISH_REASONS: Mapping[FinishReason | None, str] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "tool_call",
    FinishReason.ERROR: "error",
}
"""Why an answer has ended, in Pydantic AI's words, which have none for an answer that was cancelled."""

_TEXTS = ("text-content", "structured-content")
"""The kinds of contents, besides str, that are texts."""
_MARKS = ("cache-point",)
"""The kinds of contents that are for other providers only."""


# To the engine ----------------------------------------------------------------------------------------------------------


def messages_of(messages: Sequence[Any], instructions: str = "") -> list[dict[str, Any]]:
    """Return a history as ``Engine.chat`` takes it.

    Args:
        messages: ModelRequests and ModelResponses.
        instructions: put behind the system prompts at the beginning, into one message with them.

    Raises UserError that names the place of a content, such as an image, that a model of texts cannot take, and of a part
    that ``Model.prepare_messages`` would have written as others.
    """
    told = [each for at, message in enumerate(messages) for each in _told(message, f"messages[{at}]")]
    n_leading = next((at for at, each in enumerate(told) if each["role"] != "system"), len(told))
    texts = [each["content"] for each in told[:n_leading]] + [instructions]
    system = "\n\n".join(filter(None, texts))
    return [*([{"role": "system", "content": system}] if system else ()), *told[n_leading:]]


def instructions_of(messages: Sequence[Any], params: Any) -> str:
    """Return the instructions of a request: those of an Agent's run, or those that the history has for its last turn.

    Those about the form of the output are among them. Earlier versions keep these apart.
    """
    parts = getattr(params, "instruction_parts", None)
    texts = [_of_last_turn(messages)] if parts is None else [part.content for part in parts]
    about_output = params.prompted_output_instructions
    if about_output and about_output not in texts:
        texts.append(about_output)
    return "\n\n".join(filter(None, texts))


def _of_last_turn(messages: Sequence[Any]) -> str:
    for message in reversed(messages):
        if message.kind == "request":
            if message.instructions:
                return str(message.instructions)
            if any(part.part_kind == "user-prompt" for part in message.parts):
                return ""
    return ""


def _told(message: Any, where: str) -> Iterator[dict[str, Any]]:
    """Yield what one message becomes: a request has several parts, and a response may have nothing to tell."""
    if message.kind == "response":
        if found := _response(message, where):
            yield found
        return
    for at, part in enumerate(message.parts):
        place = f"{where}.parts[{at}]"
        if part.part_kind not in _REQUESTS:
            raise _unprepared(part, place)
        yield _REQUESTS[part.part_kind](part, place)


def _unprepared(part: Any, where: str) -> UserError:
    kind = type(part).__name__
    return UserError(f"{where}: a {kind} is for an Agent: prepare_messages() of the model writes it as other parts")


def _system(part: Any, where: str) -> dict[str, Any]:
    del where
    return {"role": "system", "content": part.content}


def _user(part: Any, where: str) -> dict[str, Any]:
    content = [part.content] if isinstance(part.content, str) else part.content
    found = [
        _item(item, f"{where}.content[{at}]")
        for at, item in enumerate(content)
        if isinstance(item, str) or getattr(item, "kind", "") not in _MARKS
    ]
    return {"role": "user", "content": content_of(found, "\n\n")}


def _item(item: Any, where: str) -> str | dict[str, Any]:
    """Return a text, or the part of a message that a picture or a sound is."""
    if isinstance(item, str):
        return item
    kind = getattr(item, "kind", "")
    if kind in _TEXTS:
        return str(item.content)
    for media in ("image", "audio"):
        if kind == "binary" and getattr(item, f"is_{media}"):
            return media_part(media, item.data)
    raise UserError(
        f"{where}: a model takes texts, and pictures and sounds as BinaryContent, and no {type(item).__name__}"
    )


def _result(part: Any, where: str) -> dict[str, Any]:
    """Return what a tool has returned; errors and retries have their words in it."""
    for file in getattr(part, "files", ()):
        raise UserError(f"{where}.content: this model takes texts only, and no {type(file).__name__}")
    return _of_tool(part, part.model_response_str())


def _retry(part: Any, where: str) -> dict[str, Any]:
    """Return what is wrong with the answer before: as the result of a call, or as the user's words."""
    del where
    if getattr(part, "tool_name", None) is None:
        return {"role": "user", "content": part.model_response()}
    return _of_tool(part, part.model_response())


def _of_tool(part: Any, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": part.tool_call_id, "name": part.tool_name, "content": text}


def _summary(part: Any, where: str) -> dict[str, Any]:
    del where
    return {"role": "user", "content": f"Summary of the conversation so far:\n\n{part.content or ''}"}


_REQUESTS: Mapping[str, Callable[[Any, str], dict[str, Any]]] = {
    "system-prompt": _system,
    "user-prompt": _user,
    "tool-return": _result,
    "retry-prompt": _retry,
    "retry-feedback": _retry,
    "compaction": _summary,
}
"""What writes the parts of a request, by their kinds. An Agent has made others into these."""


def _response(message: Any, where: str) -> dict[str, Any] | None:
    """Return a response as a message, without other providers' files, summaries and calls; None where nothing is left."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for at, part in enumerate(message.parts):
        if part.part_kind == "text":
            texts.append(part.content)
        elif part.part_kind == "thinking":
            thoughts.append(part.content)
        elif part.part_kind == "tool-call":
            calls.append(ToolCall(part.tool_call_id, part.tool_name, part.args_as_json_str()).as_dict())
        elif part.part_kind == "speech":
            raise _unprepared(part, f"{where}.parts[{at}]")
    found: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(filter(None, texts))}
    if thought := "\n\n".join(filter(None, thoughts)):
        found["reasoning_content"] = thought
    if calls:
        found["tool_calls"] = calls
    return found if len(found) > 2 or found["content"] else None


# From the engine --------------------------------------------------------------------------------------------------------


def parts_of(completion: ChatCompletion[Any]) -> list[Any]:
    """Return the parts of an answer that has ended: reasoning, text, calls. A call that is cut off has what came of it."""
    told = completion.message()
    calls = [ToolCall(call["id"], **call["function"]) for call in told.get("tool_calls", ())]
    thought, text = told.get("reasoning_content"), told["content"]
    return [
        *([ThinkingPart(content=thought)] if thought else ()),
        *([TextPart(content=text)] if text.strip() else ()),
        *(ToolCallPart(tool_name=call.name, args=call.arguments, tool_call_id=call.id) for call in calls),
    ]


def usage_of(completion: ChatCompletion[Any]) -> RequestUsage:
    """Return the numbers of tokens of a prompt and its answer."""
    usage, n_reasoning = completion.usage, completion.reasoning_tokens()
    return RequestUsage(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        details={"reasoning_tokens": n_reasoning} if n_reasoning else {},
    )


def details_of(reason: FinishReason | None, warnings: Sequence[str]) -> dict[str, Any]:
    """Return what Pydantic AI has no field for: the engine's own word for the end, and warnings about calls."""
    return {"finish_reason": reason and str(reason), **({"warnings": [*warnings]} if warnings else {})}

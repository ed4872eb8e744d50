"""The chat handler ``functionary``: calls of functions for the first models of that name.

The prompt is a text with the roles of messages in it. The model writes the name of a function behind ``to=functions.``, and
then its arguments, which a grammar holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .chat_answers import chat_answer, completion_with, tool_call
from .chat_formatter import text_of
from .chat_request import ChatRequest, as_handler
from .functionary_functions import SYSTEM_MESSAGE, RequestedFunctions
from .functionary_schema import namespace_of

__all__ = ["functionary_chat_handler"]

STOPS = ["user:", "</s>"]
_RECIPIENT = re.compile(r"\s*(?:to=functions\.|functions\.|to=)(.+)")


def _answer(request: ChatRequest) -> Any:
    """Answer a conversation, with the call of a function.

    Raises ValueError for functions and messages that cannot be used, and with ``stream`` where a function is called.
    """
    functions = RequestedFunctions.of(request)
    prompt = prompt_of(request, functions)
    if not functions.may_be_called:
        return _message(request, prompt)
    if functions.forced is not None:
        name = functions.forced["name"]
        return _call(request, functions, name, f"{prompt} to=functions.{name}:\n")
    chosen: str = request.llama.create_completion(prompt=prompt, stop="\n", stream=False)["choices"][0]["text"]
    name = _name_in(chosen)
    return _call(request, functions, name, f"{prompt}{chosen}\n") if name else _message(request, prompt)


def _message(request: ChatRequest, prompt: str) -> Any:
    completion = request.complete(f"{prompt}:\n", stream=request.stream, stop=STOPS, grammar=request.grammar)
    return chat_answer(completion, request.stream)


def _call(request: ChatRequest, functions: RequestedFunctions, name: str, prompt: str) -> dict[str, Any]:
    if request.stream:
        raise ValueError('stream: the chat format "functionary" cannot stream the calls of functions')
    completion = request.complete(prompt, stream=False, stop=STOPS, grammar=functions.grammar_of(name))
    call = tool_call(name, completion, id_=name)
    message = {"content": None, "function_call": {**call["function"]}, "tool_calls": [call]}
    return completion_with(completion, message, "tool_calls", completion["usage"])


def _name_in(begun: str) -> str:
    """Return the name of the function that the beginning of an answer calls, "" if it calls none."""
    found = _RECIPIENT.match(begun)
    return found[1].strip().removesuffix(":") if found else ""


def prompt_of(request: ChatRequest, functions: RequestedFunctions) -> str:
    """Return the prompt up to the answer's recipient. ``tools`` are described twice in it, as in llama-cpp-python.

    Raises ValueError, which names the message, for a role that is unknown and for a call without its parts.
    """
    told = []
    if functions.known is not None:
        told = [f"system:\n{namespace_of(functions.known, '  ')}\n\n"] * (1 if request.tools is None else 2)
    messages = [_text(at, message) for at, message in enumerate(request.messages)]
    return "".join([*told, f"system:\n{SYSTEM_MESSAGE}\n", *messages, "assistant"])


def _text(at: int, message: Mapping[str, Any]) -> str:
    """Return the text of a message in the prompt."""
    writer = _WRITERS.get(message.get("role", ""))
    if writer is None:
        raise ValueError(f"messages[{at}].role must be one of {', '.join(_WRITERS)}, not {message.get('role')!r}")
    try:
        return "".join(writer(message))
    except KeyError as error:
        raise ValueError(f"messages[{at}] of the role {message['role']!r} has no {error}") from error


def _system(message: Mapping[str, Any]) -> Iterator[str]:
    yield f"system:\n{text_of(message)}\n"


def _user(message: Mapping[str, Any]) -> Iterator[str]:
    yield f"user:\n</s>{text_of(message)}</s>\n"


def _assistant(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield what an assistant's message says, and what it calls: a call of a tool has its id for the recipient."""
    call, calls = message.get("function_call"), message.get("tool_calls")
    said = text_of(message)
    if said or not (call or calls) or (call and message.get("content") is not None):
        yield f"assistant:\n{said}\n"
    if call:
        yield f"assistant to=functions.{call['name']}:\n{call['arguments']}</s>\n"
    else:
        for each in calls or ():
            yield f"assistant to={each['id']}:\n{each['function']['arguments']}</s>\n"


def _tool(message: Mapping[str, Any]) -> Iterator[str]:
    has_content = message.get("content") is not None
    yield f"function name={message['tool_call_id']}" + (f":\n{text_of(message)}\n" if has_content else "\n")


def _function(message: Mapping[str, Any]) -> Iterator[str]:
    if "name" not in message and message.get("function_call"):
        call = message["function_call"]
        yield f"function name=functions.{call['name']}:\n{call['arguments']}\n"
    else:
        yield f"function name=functions.{message['name']}:\n{text_of(message)}\n"


_WRITERS = {"system": _system, "user": _user, "assistant": _assistant, "tool": _tool, "function": _function}

functionary_chat_handler = as_handler(
    _answer, "functionary_chat_handler", without=("seed", "logit_bias", "logprobs", "top_logprobs")
)  # fmt: skip

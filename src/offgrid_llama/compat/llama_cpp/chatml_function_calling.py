"""The chat handler ``chatml-function-calling``: tools for models that know ChatML and no tools.

A prompt tells the model to begin its answer with ``message:`` or with ``functions.NAME:``. Grammars hold it to that, one
completion after the other: the name first, then the arguments, then the next name.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

from .chat_answers import chat_answer, completion_with, tool_answer, tool_call
from .chat_formatter import text_of
from .chat_request import ChatRequest, as_handler
from .llama_grammar import LlamaGrammar

__all__ = ["chatml_function_calling"]

END = "<|im_end|>"
BEFORE_TOOLS = "\n\nYou have access to the following functions:\n"
AFTER_TOOLS = (
    "\n\nYou can respond to users messages with either a single message or one or more function calls."
    "\n\nTo respond with a message begin the message with 'message:', use the following format:"
    "\n\nmessage:\n<message>"
    "\n\nTo respond with one or more function calls begin the message with 'functions.<function_name>:', "
    "use the following format:"
    '\n\nfunctions.<function_name>:\n{ "arg1": "value1", "arg2": "value2" }'
    '\nfunctions.<function_name>:\n{ "arg1": "value1", "arg2": "value2" }'
)
"""The prompt of llama-cpp-python, whose models were chosen with it."""

CALL = "functions."
_IN_HTML = str.maketrans({"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "'": r"\u0027"})


def _answer(request: ChatRequest) -> Any:
    """Answer a conversation in ChatML, with calls of tools.

    Raises ValueError where ``tool_choice`` is not one of the tools or is "required", and with "auto" and ``stream`` where
    the model calls a tool.
    """
    request.use_new_names()
    if request.tool_choice is None or request.tool_choice == "none" or not request.tools:
        completion = request.complete(
            prompt_of(request),
            stream=request.stream,
            stop=request.stops(END),
            grammar=request.grammar_of_format(),
            logprobs=request.n_logprobs(),
        )
        return chat_answer(completion, request.stream)
    tool = request.chosen_tool()
    if tool is not None:
        name = tool["function"]["name"]
        prompt = f"{prompt_of(request)}{CALL}{name}:\n"
        grammar = request.grammar_of_tool(tool)
        completion = request.complete(prompt, stream=request.stream, stop=request.stops(END), grammar=grammar)
        return tool_answer(name, completion, request.stream)
    if request.tool_choice != "auto":
        raise ValueError(f'tool_choice must be "auto", "none" or a tool, not {request.tool_choice!r}')
    return _message_or_calls(request)


def _message_or_calls(request: ChatRequest) -> Any:
    """Let the model choose between a message and calls. No grammar holds the message, unlike in llama-cpp-python."""
    prompt = prompt_of(request)
    first = request.complete(
        prompt, temperature=0, stream=False, stop=[":"], max_tokens=None, grammar=_choice(request, "message:")
    )
    begun = first["choices"][0]["text"]
    if "message" in begun:
        completion = request.complete(
            prompt + "message:\n",
            stream=request.stream,
            stop=[END],
            logprobs=request.n_logprobs(),
            max_tokens=None,
        )
        return chat_answer(completion, request.stream)
    if request.stream:
        raise ValueError('tool_choice "auto" cannot stream the calls of tools')
    return _calls_of(first, list(_calls(request, prompt, begun)))


def _calls(request: ChatRequest, prompt: str, begun: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the completion of each call; ``begun`` names the first one."""
    stop = request.stops(END)
    while (tool := request.tool(name := begun[len(CALL) :])) is not None:
        prompt += f"{CALL}{name}:\n"
        grammar = request.grammar_of_tool(tool)
        completion = request.complete(prompt, stream=False, stop=stop, max_tokens=None, grammar=grammar)
        yield name, completion
        prompt += completion["choices"][0]["text"] + "\n"
        following = request.complete(prompt, stream=False, stop=stop, max_tokens=None, grammar=_choice(request, END))
        begun = following["choices"][0]["text"]


def _calls_of(first: Mapping[str, Any], calls: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the chat completion of some calls."""
    made = [tool_call(name, completion, at=at) for at, (name, completion) in enumerate(calls)]
    message: dict[str, Any] = {"content": None, "tool_calls": made}
    if len(made) == 1:
        message["function_call"] = {**made[0]["function"]}
    usage = {
        name: sum(completion.get("usage", {}).get(name, 0) for _, completion in calls)
        for name in ("completion_tokens", "prompt_tokens", "total_tokens")
    }
    return completion_with(first, message, "tool_calls", usage)


def _choice(request: ChatRequest, other: str) -> LlamaGrammar:
    """Return the grammar of the beginning of a call, or of another text."""
    names = " | ".join(json.dumps(f"{CALL}{tool['function']['name']}:", ensure_ascii=False) for tool in request.tools)
    return LlamaGrammar.from_string(f'root ::= calls | "{other}"\ncalls ::= {names}\n')


def prompt_of(request: ChatRequest) -> str:
    """Return the prompt for a conversation, with the tools of the request unless ``tool_choice`` is none of them.

    Texts of messages are escaped as in HTML, as they are in llama-cpp-python. Results of tools are left out, as there.
    """
    uses_tools = request.tool_choice not in (None, "none") and bool(request.tools)
    texts = []
    for message in request.messages:
        texts.append(f"<|im_start|>{_escaped(message['role'])}\n")
        if message["role"] == "system":
            texts += [_escaped(text_of(message)), _described(request.tools) if uses_tools else "", END, "\n"]
        elif message["role"] == "user":
            texts += [_escaped(text_of(message)), END, "\n"]
        elif message["role"] == "assistant":
            texts += _assistant(message, uses_tools)
    return "".join(texts) + "<|im_start|>assistant\n"


def _assistant(message: Mapping[str, Any], uses_tools: bool) -> Iterator[str]:
    """Yield the texts of an assistant's message: what it says, and what it calls."""
    if content := text_of(message):
        yield ("message:\n" if uses_tools else "") + _escaped(content) + END + "\n"
    if "tool_calls" in message:
        for call in message["tool_calls"] or ():
            function = call["function"]
            yield f"{CALL}{_escaped(function['name'])}:\n{_escaped(function['arguments'])}"
        yield END + "\n"


def _described(tools: Any) -> str:
    """Return the system's text about tools."""
    described = []
    for tool in tools:
        function = tool["function"]
        schema = json.dumps(function.get("parameters", {}), sort_keys=True).translate(_IN_HTML)
        described.append(f"\n{CALL}{_escaped(function['name'])}:\n{schema}\n")
    return BEFORE_TOOLS + "".join(described) + AFTER_TOOLS


def _escaped(value: Any) -> str:
    return html.escape(str(value)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


chatml_function_calling = as_handler(
    _answer, "chatml_function_calling", without=("seed", "logit_bias")
)  # fmt: skip

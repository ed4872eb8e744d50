"""Chat handlers of chat formatters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .chat_answers import chat_answer, tool_answer
from .chat_formatter import ChatFormatter
from .chat_registry import LlamaChatCompletionHandler, register_chat_completion_handler
from .chat_request import ChatRequest, as_handler

__all__ = ["answer_to", "chat_formatter_to_chat_completion_handler", "register_chat_format"]

_Formatter = TypeVar("_Formatter", bound=ChatFormatter)


def chat_formatter_to_chat_completion_handler(chat_formatter: ChatFormatter) -> LlamaChatCompletionHandler:
    """Return a chat handler that completes a formatter's prompts.

    A tool that must be called is asked for by a grammar of its arguments. Otherwise tools are only shown to the formatter.
    """

    def answer(request: ChatRequest) -> Any:
        """Answer a conversation."""
        return _answer(chat_formatter, request)

    handler: LlamaChatCompletionHandler = as_handler(answer, "chat_completion_handler")
    return handler


def _answer(chat_formatter: ChatFormatter, request: ChatRequest) -> Any:
    formatted = chat_formatter(
        messages=request.messages,
        functions=request.functions,
        function_call=request.function_call,
        tools=request.tools,
        tool_choice=request.tool_choice,
        **request.further,
    )
    add_bos = not formatted.added_special
    prompt = request.llama.tokenize(formatted.prompt.encode("utf-8"), add_bos=add_bos, special=True)
    stop = request.stop
    if formatted.stop is not None:
        stop = request.stops(*([formatted.stop] if isinstance(formatted.stop, str) else formatted.stop))
    return answer_to(request, prompt, stop, formatted.stopping_criteria)


def answer_to(request: ChatRequest, prompt: Any, stop: Any, stopping_criteria: Any = None) -> Any:
    """Answer a request by what follows its prompt: tokens, and the pictures among them."""
    request.use_new_names()
    tool = request.chosen_tool()
    completion = request.complete(
        prompt,
        stop=stop,
        stream=request.stream,
        seed=request.seed,
        logit_bias=request.logit_bias,
        logprobs=request.n_logprobs(),
        stopping_criteria=stopping_criteria,
        grammar=request.grammar_of_format() if tool is None else request.grammar_of_tool(tool),
    )
    if tool is not None:
        return tool_answer(tool["function"]["name"], completion, request.stream)
    return chat_answer(completion, request.stream)


def register_chat_format(name: str) -> Callable[[_Formatter], _Formatter]:
    """Return a decorator that registers the chat handler of a formatter under a name."""

    def decorator(chat_formatter: _Formatter) -> _Formatter:
        register_chat_completion_handler(name)(chat_formatter_to_chat_completion_handler(chat_formatter))
        return chat_formatter

    return decorator

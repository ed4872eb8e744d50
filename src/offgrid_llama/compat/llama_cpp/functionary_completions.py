"""Completions: the completions that one answer of a functionary model is made of."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from .chat_answers import completion_with
from .chat_request import ChatRequest
from .llama_grammar import LlamaGrammar

__all__ = ["Completions", "call_id"]


class Completions:
    """Asks for completions, whole or in chunks as the request says, and keeps what the answer has of them.

    Attributes:
        first, last: the first and the last completion or chunk, empty before there is one.
        text: the text of the last completion, as far as it was read.
        n_completion_tokens: those of all whole completions.
    """

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.first: Mapping[str, Any] = {}
        self.last: Mapping[str, Any] = {}
        self.text = ""
        self.n_completion_tokens = 0

    def pieces(self, prompt: str, stop: str | list[str], grammar: LlamaGrammar | None = None) -> Iterator[str]:
        """Yield the text of a completion in pieces. It is asked for when the first piece is."""
        self.text = ""
        stream = self.request.stream
        made = self.request.complete(prompt, stop=stop, stream=stream, grammar=grammar)
        for each in made if stream else (made,):
            self.first, self.last = self.first or each, each
            self.n_completion_tokens += each.get("usage", {}).get("completion_tokens", 0)
            piece = each["choices"][0]["text"]
            self.text += piece
            yield piece

    def whole(self, prompt: str, stop: str | list[str], grammar: LlamaGrammar | None = None) -> str:
        """Return the text of a completion."""
        return "".join(self.pieces(prompt, stop, grammar))

    def answer(self, content: str, calls: list[tuple[str, str]]) -> dict[str, Any]:
        """Return the chat completion of a text and of calls, each a name and its arguments.

        A request that came with ``functions`` has the first call only.
        """
        functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
        message: dict[str, Any] = {"content": content or None}
        if functions and self.request.tools is None:
            message["function_call"] = functions[0]
        elif functions:
            message["tool_calls"] = [{"id": call_id(), "type": "function", "function": each} for each in functions]
        usage = {**self.last["usage"], "completion_tokens": self.n_completion_tokens}
        return completion_with(self.last, message, "tool_calls" if functions else "stop", usage)


def call_id() -> str:
    """Return a new id for the call of a tool."""
    return f"call_{secrets.token_hex(12)}"

"""Answers of functionary models of version 1: a line of text, or the call of one function."""

from __future__ import annotations

from typing import Any

from .chat_answers import chat_answer
from .functionary_completions import Completions
from .functionary_functions import RequestedFunctions

__all__ = ["ANSWER", "END_ASSISTANT", "START_CALL", "answer"]

ANSWER = "assistant:\n"
"""The beginning of an answer."""
END_ASSISTANT = "<|END_OF_ASSISTANT|>"
START_CALL = "<|START_OF_FUNCTION_CALL|>"
END_CALL = "<|END_OF_FUNCTION_CALL|>"


def answer(functions: RequestedFunctions, prompt: str) -> Any:
    """Answer a conversation with functions. Raises ValueError for ``stream``."""
    request = functions.request
    if request.stream:
        raise ValueError("stream: functionary models of version 1 cannot stream with functions")
    asked = Completions(request)
    if functions.forced is not None:
        name = functions.forced["name"]
        prompt += f"{START_CALL}{name}:\n"
    else:
        said = asked.whole(prompt, ["\n", END_ASSISTANT], request.grammar)
        if START_CALL not in said:
            return chat_answer(asked.last)
        name = said.rpartition(START_CALL)[2].strip().removesuffix(":")
        prompt += said.replace(f"{START_CALL} ", START_CALL) + "\n"
    arguments = asked.whole(prompt, END_CALL, functions.grammar_of(name))
    return asked.answer("", [(name, arguments.strip())])

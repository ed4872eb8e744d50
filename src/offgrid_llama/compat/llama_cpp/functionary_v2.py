"""Answers of functionary models of version 2: turns, each for a recipient: a function, or all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .chat_answers import chat_chunk
from .functionary_completions import Completions, call_id
from .functionary_functions import RequestedFunctions

__all__ = ["ALL", "ANSWER", "CONTENT", "STOP", "answer", "stream"]

FROM, RECIPIENT, CONTENT, STOP = "<|from|>", "<|recipient|>", "<|content|>", "<|stop|>"
ALL = "all"
"""The recipient of a text."""
ANSWER = f"{FROM}assistant\n{RECIPIENT}"
"""The beginning of a turn."""
AGAIN = ("<|from|>assistant", "<|from|> assistant")
"""The texts in a turn that say that another one follows."""
MARKS = tuple(f"\n{text}\n" for text in AGAIN)
MAX_TURNS = 64
"""A model that always begins another turn would go on until its context is full."""


@dataclass
class _Turn:
    """A turn: its recipient, and the pieces of its text, which the reader takes before the next turn."""

    recipient: str
    pieces: Iterator[str]


def answer(functions: RequestedFunctions, prompt: str) -> dict[str, Any]:
    """Answer a conversation: a text, and the calls of functions."""
    asked = Completions(functions.request)
    content, calls = "", []
    for turn in _turns(asked, functions, prompt):
        if turn.recipient == ALL:
            content = (content + "".join(_message(turn.pieces))).lstrip()
        else:
            calls.append((turn.recipient, "".join(turn.pieces).strip()))
    return asked.answer(content, calls)


def stream(functions: RequestedFunctions, prompt: str) -> Iterator[dict[str, Any]]:
    """Yield the chunks of such an answer."""
    asked = Completions(functions.request)
    n_calls = 0
    for turn in _turns(asked, functions, prompt):
        if turn.recipient == ALL:
            for text in itertools.chain([""], _message(turn.pieces)):
                yield chat_chunk(asked.first, {"role": "assistant", "content": text})
        else:
            yield from _call_chunks(asked, functions, turn, n_calls)
            n_calls += 1
    if not asked.first:
        return
    if n_calls:
        nothing = {"role": None, "content": None, "function_call": None, "tool_calls": None}
        reason = "function_call" if functions.request.tools is None else "tool_calls"
        yield chat_chunk(asked.first, nothing, reason)
    else:
        yield chat_chunk(asked.first, {}, "stop")


def _turns(asked: Completions, functions: RequestedFunctions, prompt: str) -> Iterator[_Turn]:
    """Return the turns of an answer: the one that must be, or those that the model chooses."""
    if functions.forced is None:
        return _chosen_turns(asked, functions, prompt)
    name = functions.forced["name"]
    pieces = asked.pieces(f"{prompt}{name}\n{CONTENT}", [STOP, FROM], functions.grammar_of(name))
    return iter([_Turn(name, pieces)])


def _chosen_turns(asked: Completions, functions: RequestedFunctions, prompt: str) -> Iterator[_Turn]:
    has_one_call = functions.request.stream and functions.request.tools is None
    for _ in range(MAX_TURNS):
        recipient = asked.whole(prompt, CONTENT).strip()
        if not recipient:
            return
        prompt += f"{recipient}\n{CONTENT}"
        grammar = None if recipient == ALL else functions.grammar_of(recipient)
        stops = [RECIPIENT, STOP]
        yield _Turn(recipient, asked.pieces(prompt, stops, grammar))
        prompt += _without_mark(asked.text).strip()
        following = asked.text if recipient == ALL else asked.whole(prompt, stops)
        if not any(text in following for text in AGAIN) or (has_one_call and recipient != ALL):
            return
        prompt += f"\n{ANSWER}"


def _without_mark(text: str) -> str:
    for mark in MARKS:
        text = text.removesuffix(mark)
    return text


def _message(pieces: Iterator[str]) -> Iterator[str]:
    """Yield the pieces of a text without the space at its beginning and without the mark of another turn at its end."""
    held, is_begun = "", False
    for piece in pieces:
        held += piece
        if not is_begun:
            held = held.lstrip()
        n = len(held) - _n_of_mark(held)
        if n:
            yield held[:n]
            held, is_begun = held[n:], True
    if rest := _without_mark(held):
        yield rest


def _n_of_mark(text: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark."""
    return max((n for mark in MARKS for n in range(1, len(mark) + 1) if text.endswith(mark[:n])), default=0)


def _arguments(pieces: Iterator[str]) -> Iterator[str]:
    """Yield the pieces of a call's arguments without the space at both of their ends."""
    held, is_begun = "", False
    for piece in pieces:
        held = held + piece if is_begun else (held + piece).lstrip()
        n = len(held.rstrip())
        if n:
            yield held[:n]
            held, is_begun = held[n:], True


def _call_chunks(asked: Completions, functions: RequestedFunctions, turn: _Turn, at: int) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a call: its name first, and then its arguments."""
    is_tool, id_ = functions.request.tools is not None, call_id()

    def delta(role: str | None, name: str | None, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        call = {"index": at, "id": id_, "type": "function", "function": function}
        return {"role": role, "content": None, **({"tool_calls": [call]} if is_tool else {"function_call": function})}

    pieces = turn.pieces
    if not asked.first:  # a chunk has the id of a completion
        pieces = itertools.chain([next(pieces, "")], pieces)
    if not asked.first:
        return
    yield chat_chunk(asked.first, delta(None if functions.forced else "assistant", turn.recipient, ""))
    for text in _arguments(pieces):
        yield chat_chunk(asked.first, delta(None, None, text))

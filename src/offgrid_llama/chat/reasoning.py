"""Reasoning: where a model thinks aloud before it answers, found from its template, and told apart as the text comes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ChatTemplateError

if TYPE_CHECKING:
    from offgrid_llama.chat.template import ChatTemplate
    from offgrid_llama.vocab import Vocab

__all__ = ["Reasoning", "Splitter", "find_reasoning", "lark_around"]

_THOUGHT, _ANSWER = "Zorblax thinks.", "Quimby answers."
_KNOWN = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)


@dataclass(frozen=True)
class Reasoning:
    """What stands before and behind a model's reasoning, without the spaces around it."""

    begin: str
    end: str


def find_reasoning(template: ChatTemplate, **variables: Any) -> Reasoning | None:
    """Return what marks reasoning in a template's prompts, or None where it knows none.

    Found by rendering an answer with reasoning and looking at what the template puts around it; where it drops that, by the
    usual marks in its source.
    """
    user = {"role": "user", "content": "Hello."}
    plain = {"role": "assistant", "content": _ANSWER}
    thought = {**plain, "reasoning_content": _THOUGHT, "thinking": _THOUGHT}
    try:
        prompt = template.render([user], **variables)
        without = template.render([user, plain], add_generation_prompt=False, **variables)
        text = template.render([user, thought], add_generation_prompt=False, **variables)
    except (ChatTemplateError, TypeError, ValueError):
        prompt = without = text = ""
    at, answer = text.find(_THOUGHT), text.find(_ANSWER)
    if 0 <= at < answer:
        end = text[at + len(_THOUGHT) : answer].strip()
        shared = next((i for i, (a, b) in enumerate(zip(text[:at], without, strict=False)) if a != b), 0)
        begin = _opened(text[:at], prompt) or text[shared:at].strip() or _last_mark(text[:at])
        if begin and end:
            return Reasoning(begin, end)
    for begin, end in _KNOWN:
        if end in template.source:
            return Reasoning(begin, end)
    return None


def _opened(text: str, prompt: str) -> str:
    """Return what a text has behind a prompt that it begins with."""
    return text[len(prompt) :].strip() if text.startswith(prompt) else ""


def _last_mark(text: str) -> str:
    """Return the mark that a text ends with, if it does."""
    found = re.search(r"(<[^<>\s]+>|\[[A-Z_/]+\])\s*$", text)
    return found[1] if found else ""


def lark_around(reasoning: Reasoning, vocab: Vocab, *, inside: bool) -> str:
    """Return a grammar in llguidance's Lark: reasoning, as free as it likes, and then ``@answer``.

    Without ``inside`` the prompt has not opened it, and the model may answer at once.
    """
    controls = vocab.control_tokens()
    begin = f"<[{controls[reasoning.begin]}]>" if reasoning.begin in controls else json.dumps(reasoning.begin)
    if reasoning.end in controls:
        thought = f"thought: /(?s:.*)/ <[{controls[reasoning.end]}]>"
    else:
        thought = f"thought[lazy]: /(?s:.*){re.escape(reasoning.end).replace('/', chr(92) + '/')}/"
    start = "thought GAP @answer" if inside else f"({begin} thought GAP)? @answer"
    return f"start: {start}\n{thought}\nGAP: /[ \\n]{{0,3}}/"


class Splitter:
    """Takes text as it comes, and gives it back as reasoning and answer (pure).

    The spaces around the marks belong to neither.

    Args:
        reasoning: the marks; None is all answer.
        inside: whether the prompt has opened the reasoning already.
    """

    def __init__(self, reasoning: Reasoning | None, *, inside: bool = False) -> None:
        self._reasoning = reasoning
        self._state = "answer" if reasoning is None else "thinking" if inside else "start"
        self._held = ""  # may be the beginning of a mark, or the spaces before one
        self._leading = inside  # nothing of this kind was given out yet: spaces are left out

    def push(self, text: str) -> tuple[str, str]:
        """Take more text; return what there is of reasoning and of the answer."""
        self._held += text
        thought = ""
        marks = self._reasoning
        if marks is not None and self._state == "start":
            stripped = self._held.lstrip()
            if stripped.startswith(marks.begin):
                self._state, self._held, self._leading = "thinking", stripped[len(marks.begin) :], True
            elif marks.begin.startswith(stripped):  # it may come yet
                return "", ""
            else:
                self._state = "answer"
        if marks is not None and self._state == "thinking":
            at = self._held.find(marks.end)
            if at < 0:
                sure = self._held[: len(self._held) - _overlap(self._held, marks.end)].rstrip()
                self._held = self._held[len(sure) :]
                return self._given(sure), ""
            thought = self._given(self._held[:at].rstrip())
            self._state, self._held, self._leading = "answer", self._held[at + len(marks.end) :], True
        answer, self._held = self._given(self._held), ""
        return thought, answer

    def finish(self) -> tuple[str, str]:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return (self._given(held.rstrip()), "") if self._state == "thinking" else ("", held)

    def _given(self, text: str) -> str:
        if self._leading:
            text = text.lstrip()
            self._leading = not text
        return text


def _overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of a text are the beginning of a mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)

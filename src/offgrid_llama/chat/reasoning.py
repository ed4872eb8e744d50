"""Reasoning: the marks around what a model thinks before it answers, found from its template, and its text split at them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ChatTemplateError

from .marks import MARK, mark_start, overlap, shared

if TYPE_CHECKING:
    from offgrid_llama.model.vocab import Vocab

    from .template.template import ChatTemplate, PromptPart

__all__ = ["Reasoning", "Splitter", "find_reasoning", "lark_around", "opened"]

_ASKED, _THOUGHT, _ANSWER = "Grault asks.", "Zorblax thinks.", "Quimby answers."
USUAL_MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""The marks around reasoning in templates that leave out all reasoning but have the mark behind it in their source."""


@dataclass(frozen=True)
class Reasoning:
    """The texts before and behind a model's reasoning, without the spaces around them."""

    begin: str
    end: str


def find_reasoning(template: ChatTemplate, **variables: Any) -> Reasoning | None:
    """Return the marks around reasoning in a template's prompts; None where it has none.

    They are found by rendering an answer with reasoning: some templates write that only before calls. Where a template
    leaves out all reasoning, the usual marks are looked for in its source.
    """
    user = {"role": "user", "content": _ASKED}
    plain = {"role": "assistant", "content": _ANSWER}
    call = {"type": "function", "id": "abcabcabc", "function": {"name": _ANSWER, "arguments": {}}}
    reasoned = {"reasoning_content": _THOUGHT, "thinking": _THOUGHT, "reasoning": _THOUGHT}
    try:
        prompt = template.render([user], **variables)
        without = template.render([user, plain], add_generation_prompt=False, **variables)
    except (ChatTemplateError, TypeError, ValueError):
        prompt = without = ""
    for answer in (plain, {"role": "assistant", "content": "", "tool_calls": [call]}) if prompt else ():
        try:
            text = template.render([user, {**answer, **reasoned}], add_generation_prompt=False, **variables)
        except (ChatTemplateError, TypeError, ValueError):
            continue
        found = _marks_in(text, prompt, without, calls=answer is not plain)
        if found is not None:
            return found
    return next((Reasoning(begin, end) for begin, end in USUAL_MARKS if end in template.source), None)


def _marks_in(text: str, prompt: str, without: str, *, calls: bool) -> Reasoning | None:
    """Return the marks around reasoning in a rendered conversation; None where it has no reasoning before its answer.

    Args:
        text: the conversation, with reasoning.
        prompt: the prompt for its answer.
        without: the conversation with an answer without reasoning.
        calls: whether the answer is a call.
    """
    at, answer_at = text.find(_THOUGHT), text.find(_ANSWER)
    if not 0 <= at < answer_at:
        return None
    end = text[at + len(_THOUGHT) : answer_at]
    if calls or not MARK.sub("", end).strip():
        end = _up_to_first_mark(end)  # the other marks are around the answer
    found = Reasoning(_beginning(text[:at], prompt, without), end.strip())
    return found if found.begin and found.end else None


def _beginning(text: str, prompt: str, without: str) -> str:
    """Return the text that opens reasoning.

    Args:
        text: a conversation with reasoning, up to the reasoning.
        prompt: the prompt for its answer.
        without: the conversation with an answer without reasoning.
    """
    ways = [
        text[len(prompt) :] if text.startswith(prompt) else "",
        _differing(text, without),
        _differing(prompt, without),
    ]
    found = next((way.strip() for way in ways if way.strip() and _ASKED not in way), "")
    if found:
        return found
    # The prompt has opened the reasoning, with as much of its end as occurs once, in whole marks.
    marks = [match.start() for match in MARK.finditer(text)]
    return next((text[at:].strip() for at in reversed(marks) if text.count(text[at:].strip()) == 1), "")


def _differing(text: str, other: str) -> str:
    """Return a text from the place on where it differs from another one, or from the mark that this place is in."""
    return text[mark_start(text, shared(text, other)) :]


def _up_to_first_mark(text: str) -> str:
    """Return a text up to the end of the first mark in it."""
    found = MARK.search(text)
    return text[: found.end()] if found else text


def opened(parts: Sequence[PromptPart], reasoning: Reasoning | None) -> tuple[bool, bool]:
    """Return whether a prompt ends inside of reasoning, and whether it has closed it, so that the model writes none."""
    if reasoning is None:
        return False, False
    tail = "".join(part.text for part in parts[-2:])
    inside = tail.rfind(reasoning.begin) > tail.rfind(reasoning.end)
    return inside, not inside and tail.rstrip().endswith(reasoning.end)


def lark_around(reasoning: Reasoning, vocab: Vocab, *, inside: bool) -> str:
    """Return a grammar in llguidance's Lark: reasoning, which is any text, and then ``@answer``.

    Without ``inside`` the prompt has not opened the reasoning, and the model may answer at once.
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
    """Takes a model's text piece by piece, and returns it as reasoning and answer (pure).

    The spaces around the marks belong to neither.

    Args:
        reasoning: the marks; None is that all of the text is the answer.
        inside: whether the prompt has opened the reasoning already.
    """

    def __init__(self, reasoning: Reasoning | None, *, inside: bool = False) -> None:
        self._reasoning = reasoning
        self._state = "answer" if reasoning is None else "thinking" if inside else "start"
        self._held = ""  # it may be the beginning of a mark, or the spaces before one
        self._leading = inside  # nothing of this kind was returned yet: spaces are left out

    def push(self, text: str) -> tuple[str, str]:
        """Take more text; return what it adds to the reasoning and to the answer."""
        self._held += text
        thought = ""
        marks = self._reasoning
        if marks is not None and self._state == "start":
            stripped = self._held.lstrip()
            if stripped.startswith(marks.begin):
                self._state, self._held, self._leading = "thinking", stripped[len(marks.begin) :], True
            elif stripped.startswith(marks.end):  # some models close reasoning that they have not opened
                self._state, self._held, self._leading = "answer", stripped[len(marks.end) :], True
            elif marks.begin.startswith(stripped) or marks.end.startswith(stripped):  # the rest of it may come
                return "", ""
            else:
                self._state = "answer"
        if marks is not None and self._state == "thinking":
            at = self._held.find(marks.end)
            if at < 0:
                sure = self._held[: len(self._held) - overlap(self._held, marks.end)].rstrip()
                self._held = self._held[len(sure) :]
                return self._given(sure), ""
            thought = self._given(self._held[:at].rstrip())
            self._state, self._held, self._leading = "answer", self._held[at + len(marks.end) :], True
        answer, self._held = self._given(self._held), ""
        return thought, answer

    def finish(self, *, cut: bool = False) -> tuple[str, str]:
        """Return what was held back, at the end of the text; without the beginning of a mark where the text was cut."""
        held, self._held = self._held, ""
        if cut and self._reasoning is not None:
            held = held[: len(held) - overlap(held, self._reasoning.end)] if self._state == "thinking" else ""
        return (self._given(held.rstrip()), "") if self._state == "thinking" else ("", held)

    def _given(self, text: str) -> str:
        if self._leading:
            text = text.lstrip()
            self._leading = not text
        return text

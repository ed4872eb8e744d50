"""Reasoning: where a model thinks aloud before it answers, found from its template, and told apart as the text comes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ChatTemplateError

if TYPE_CHECKING:
    from offgrid_llama.chat.template import ChatTemplate, Part
    from offgrid_llama.vocab import Vocab

__all__ = ["MARK", "Reasoning", "Splitter", "find_reasoning", "lark_around", "opened", "overlap", "shared"]

MARK = re.compile(r"\]<\]\w+\[>\[|<[^<>\s]{1,60}(?: [^<>]{1,60})?>|\[/?[A-Z_]{2,20}\]")
"""What looks like a mark, such as ``<tool_call>``: no part of one is ever taken alone."""

_ASKED, _THOUGHT, _ANSWER = "Grault asks.", "Zorblax thinks.", "Quimby answers."
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

    Found by rendering an answer with reasoning and looking at what the template puts around it; some write that only before
    calls. Where a template drops all reasoning, by the usual marks in its source.
    """
    user = {"role": "user", "content": _ASKED}
    plain = {"role": "assistant", "content": _ANSWER}
    call = {"type": "function", "id": "abcabcabc", "function": {"name": _ANSWER, "arguments": {}}}
    thought = {"reasoning_content": _THOUGHT, "thinking": _THOUGHT, "reasoning": _THOUGHT}
    try:
        prompt = template.render([user], **variables)
        without = template.render([user, plain], add_generation_prompt=False, **variables)
    except (ChatTemplateError, TypeError, ValueError):
        prompt = without = ""
    for answer in (plain, {"role": "assistant", "content": "", "tool_calls": [call]}) if prompt else ():
        try:
            text = template.render([user, {**answer, **thought}], add_generation_prompt=False, **variables)
        except (ChatTemplateError, TypeError, ValueError):
            continue
        at, behind = text.find(_THOUGHT), text.find(_ANSWER)
        if 0 <= at < behind:
            end = text[at + len(_THOUGHT) : behind]
            if answer is not plain or not MARK.sub("", end).strip():
                end = _first_mark(end)  # the others are around the answer
            found = Reasoning(_beginning(text[:at], prompt, without), end.strip())
            if found.begin and found.end:
                return found
    for begin, end in _KNOWN:
        if end in template.source:
            return Reasoning(begin, end)
    return None


def _beginning(text: str, prompt: str, without: str) -> str:
    """Return what opens reasoning, by a prompt with it up to there, one for it, and one with an answer that has none."""
    ways = [
        text[len(prompt) :] if text.startswith(prompt) else "",
        _differing(text, without),
        _differing(prompt, without),
    ]
    found = next((way.strip() for way in ways if way.strip() and _ASKED not in way), "")
    if found:
        return found
    # The prompt has opened it. As much of its end as occurs once, in whole marks:
    marks = [match.start() for match in MARK.finditer(text)]
    return next((text[at:].strip() for at in reversed(marks) if text.count(text[at:].strip()) == 1), "")


def _differing(text: str, other: str) -> str:
    """Return a text from where it differs from another one, or from the mark that this is in."""
    at = shared(text, other)
    return text[min([match.start() for match in MARK.finditer(text) if match.start() < at < match.end()], default=at) :]


def _first_mark(text: str) -> str:
    """Return a text up to the end of the first mark in it."""
    found = MARK.search(text)
    return text[: found.end()] if found else text


def opened(parts: Sequence[Part], reasoning: Reasoning | None) -> tuple[bool, bool]:
    """Return whether a prompt has opened the reasoning, and whether it has closed it, too, so that there will be none."""
    if reasoning is None:
        return False, False
    tail = "".join(part.text for part in parts[-2:])
    inside = tail.rfind(reasoning.begin) > tail.rfind(reasoning.end)
    return inside, not inside and tail.rstrip().endswith(reasoning.end)


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
            elif stripped.startswith(marks.end):  # some close what they have not opened
                self._state, self._held, self._leading = "answer", stripped[len(marks.end) :], True
            elif marks.begin.startswith(stripped) or marks.end.startswith(stripped):  # it may come yet
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

    def finish(self) -> tuple[str, str]:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return (self._given(held.rstrip()), "") if self._state == "thinking" else ("", held)

    def _given(self, text: str) -> str:
        if self._leading:
            text = text.lstrip()
            self._leading = not text
        return text


def shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with both."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of a text are the beginning of a mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)

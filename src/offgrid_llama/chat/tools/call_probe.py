"""How a model writes that it calls a function, found by rendering calls with its template and comparing.

Nothing here knows a model by name. Conversations with one call and with two, with one argument and with two, and with values
of every kind are rendered; where they differ, names, arguments, ids and numbers stand.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from offgrid_llama.chat.marks import MARK, mark_end, mark_start, shared, shared_end
from offgrid_llama.chat.reasoning import Reasoning
from offgrid_llama.errors import ChatTemplateError

from .argument_probe import find_tagged_arguments
from .call_format import JSON_IN_TAGS, PYTHONIC, PartHeaders, Slot, ToolFormat
from .call_layout import (
    CALL_ID,
    OTHER_CALL_ID,
    OTHER_PARAMETER,
    OTHER_TOOL,
    PARAMETER,
    TEXT,
    TOOL,
    Layout,
    Place,
    find_json,
    find_numbered,
    find_repeated,
    find_slots,
)

if TYPE_CHECKING:
    from offgrid_llama.chat.template.template import ChatTemplate

__all__ = ["find_tool_format"]

PROBE_MAX_SECONDS = 5.0
"""The time for all renderings of a probe. A usual template takes some hundredths of a second."""


def find_tool_format(template: ChatTemplate, reasoning: Reasoning | None, controls: Collection[str] = ()) -> ToolFormat:
    """Return how a model writes calls of functions.

    Args:
        template: that of the model.
        reasoning: the marks around reasoning in it, as ``find_reasoning`` has found them.
        controls: the texts of its control tokens.

    Where a template cannot write calls, or takes too long, the format is ``PYTHONIC`` or ``JSON_IN_TAGS``.
    """
    probe = _Probe(template, reasoning)
    for probe.as_text in (False, True):
        for probe.content in ("", None):
            found = _find(probe)
            if found is not None:
                return replace(found, lists_tools=probe.lists_tools, writes_calls=True)
    return replace(PYTHONIC if PYTHONIC.trigger in controls else JSON_IN_TAGS, lists_tools=probe.lists_tools)


def _find(probe: _Probe) -> ToolFormat | None:
    """Return the format of the calls that a probe renders; None where it renders none that can be understood."""
    one = probe.calls([(TOOL, {PARAMETER: TEXT}, CALL_ID)])
    if one is None or not _has_call(one):
        return None
    layout = _layout(probe, one)
    call = layout.item
    places: list[Place] = []
    if layout.number_at is not None:
        places.append((Slot.INDEX, layout.number_at, layout.number_at + len(str(layout.number))))
    written: dict[str, Any] = {}
    where = find_json(call, {PARAMETER: TEXT})
    if where is not None:
        slots = find_slots(call, [*places, (Slot.ARGUMENTS, *where)])
        written["spaced"] = ": " in call[slice(*where)]
    else:
        tagged = find_tagged_arguments(call, places, lambda arguments: probe.calls([(TOOL, arguments, CALL_ID)]))
        slots, written["tags"] = tagged or (None, None)
    if slots is None:
        return None
    return ToolFormat(
        probe.without_reasoning(layout.begin),
        probe.before_turns(layout.end),
        slots,
        layout.separator,
        first_index=layout.number,
        as_text=probe.as_text,
        content=probe.content,
        headers=probe.headers and replace(probe.headers, between=probe.headers.between or layout.separator or ""),
        **written,
    )


def _has_call(text: str) -> bool:
    """Return whether a rendered text has a call to TOOL that a model could write: its arguments are no Python dict."""
    return TEXT in text and (TOOL in text or CALL_ID in text) and f"{{'{PARAMETER}'" not in text


def _layout(probe: _Probe, one: str) -> Layout:
    """Return where a call stands in a rendered text, by a text with two calls where the template writes several."""
    two = probe.calls([(TOOL, {PARAMETER: TEXT}, CALL_ID), (OTHER_TOOL, {PARAMETER: TEXT}, OTHER_CALL_ID)])
    if two is not None:
        same = two.replace(OTHER_TOOL, TOOL).replace(OTHER_CALL_ID, CALL_ID)
        found = find_numbered(one, same, TEXT) or find_repeated(one, same, TEXT)
        if found is not None:
            return found.with_spaces_in_begin()
    layout = Layout("", probe.without_reasoning(one), "").with_spaces_in_begin()
    at = layout.item.rfind(TEXT)
    return replace(layout, item=layout.item[:at] + probe.before_turns(layout.item[at:]))


class _Probe:
    """Renders calls, and returns the text that the model would have to write for them.

    Attributes:
        as_text: whether the template is given arguments as JSON text.
        content: the content of the messages with calls.
        lists_tools: whether the template tells the model of the tools.
        headers: how the parts of a message are told apart, where it has parts.
    """

    as_text: bool
    content: str | None

    def __init__(self, template: ChatTemplate, reasoning: Reasoning | None) -> None:
        self._template = template
        self._deadline = perf_counter() + PROBE_MAX_SECONDS
        self._variables: dict[str, Any] = {"tools": None}
        self._user = {"role": "user", "content": "Do it."}
        self._turns = frozenset(MARK.findall(self._render([self._user], True) or ""))
        self._variables["tools"] = _tools()
        prompt = self._render([self._user], True) or ""
        answer = self._render([self._user, {"role": "assistant", "content": TEXT}], False) or ""
        self.lists_tools = TOOL in prompt
        before_answer = answer.partition(TEXT)[0]
        self._behind = answer.rpartition(TEXT)[2]
        self._reasoning_end = None if reasoning is None else reasoning.end
        self.headers = _headers(prompt, before_answer, reasoning)
        self._before = [prompt, before_answer] if self.headers is None else [prompt]

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str | None:
        """Return a rendered conversation; None where the template refuses it, or the time is over."""
        if perf_counter() > self._deadline:
            return None
        try:
            return self._template.render(messages, add_generation_prompt=add_generation_prompt, **self._variables)
        except (ChatTemplateError, TypeError, ValueError):
            return None

    def calls(self, calls: Sequence[tuple[str, Mapping[str, Any], str]]) -> str | None:
        """Return the text of calls, each given as name, arguments and id; None where the template refuses them."""
        described = []
        for name, arguments, id_ in calls:
            given = json.dumps(arguments) if self.as_text else dict(arguments)
            described.append({"type": "function", "id": id_, "function": {"name": name, "arguments": given}})
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "tool_calls": described}
        text = self._render([self._user, message], False)
        return None if text is None else self._written_by_model(text)

    def _written_by_model(self, text: str) -> str:
        """Return the part of a rendered conversation that the model writes, in whole marks."""
        begin = max(shared(text, before) for before in self._before)
        end = len(text) - shared_end(text, self._behind)
        return text[mark_start(text, begin) : mark_end(text, end)]

    def without_reasoning(self, text: str) -> str:
        """Return a text without the end of reasoning that it may begin with."""
        return text.rpartition(self._reasoning_end)[2] if self._reasoning_end else text

    def before_turns(self, text: str) -> str:
        """Return a text up to the first mark that a prompt without calls has as well."""
        return text[: next((match.start() for match in MARK.finditer(text) if match[0] in self._turns), len(text))]


def _tools() -> list[dict[str, Any]]:
    """Return the two tools that calls are rendered of, in the shape of OpenAI."""
    parameters = {
        "type": "object",
        "properties": {name: {"type": "string", "description": "A text."} for name in (PARAMETER, OTHER_PARAMETER)},
        "required": [PARAMETER],
    }
    functions = [{"name": name, "description": "A function.", "parameters": parameters} for name in (TOOL, OTHER_TOOL)]
    return [{"type": "function", "function": each} for each in functions]


def _headers(prompt: str, before_answer: str, reasoning: Reasoning | None) -> PartHeaders | None:
    """Return the headers of parts; None where the template writes none.

    Args:
        prompt: a rendered prompt.
        before_answer: the same conversation up to the content of its answer.
        reasoning: the marks around reasoning.
    """
    head = before_answer[len(prompt) :] if before_answer.startswith(prompt) else ""
    marks = MARK.findall(head)
    if reasoning is None:
        word = head.strip()
        return PartHeaders(head, "", head[len(head.rstrip()) :], "") if word.isalpha() and word != head else None
    between = reasoning.end.removesuffix(head.rstrip())
    if not marks or between == reasoning.end or not MARK.sub("", head).strip() or not between:
        return None
    return PartHeaders(head, reasoning.begin, marks[-1], between)

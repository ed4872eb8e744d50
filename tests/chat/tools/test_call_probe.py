"""chat/tools/call_probe.py: how a model writes calls, found from its template."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from helpers.golden_chats import known
from helpers.tools import WRITTEN
from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.reasoning import find_reasoning
from offgrid_llama.chat.tools.call_format import JSON_IN_TAGS, Slot
from offgrid_llama.chat.tools.call_probe import PROBE_MAX_SECONDS, find_tool_format


def test_formats_are_found() -> None:
    """59 of llama.cpp's templates write calls that can be understood; the others do not, or jinja2 refuses them."""
    assert len(WRITTEN) == 59
    assert known("Qwen-Qwen3-0.6B.jinja")[1] == dataclasses.replace(JSON_IN_TAGS, lists_tools=True, writes_calls=True)
    coder = known("Qwen3-Coder.jinja")[1]
    assert (coder.trigger, coder.short_trigger) == ("<tool_call>", "<function=")
    assert coder.tags is not None
    assert coder.tags.begin == "<parameter="
    cohere = known("CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja")[1]
    assert (cohere.begin, cohere.end) == ("<|START_ACTION|>[\n    ", "\n]<|END_ACTION|>")
    assert Slot.INDEX in cohere.call
    assert known("deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja")[1].as_text
    assert not known("google-gemma-2-2b-it.jinja")[1].lists_tools


def test_hostile_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that takes too long gets the usual format once its time is used up."""
    render, rendered = ChatTemplate.render, []

    def noted(template: ChatTemplate, *arguments: Any, **options: Any) -> str:
        rendered.append(template)
        return render(template, *arguments, **options)

    monkeypatch.setattr(ChatTemplate, "render", noted)
    monkeypatch.setattr(
        "offgrid_llama.chat.tools.call_probe.perf_counter", lambda: float(len(rendered))
    )  # 1 s for each
    endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    for source in (endless, "{% if tools %}" + endless + "{% endif %}x", "{{ raise_exception('no') }}"):
        template = ChatTemplate(source, max_seconds=0.05)
        reasoning = find_reasoning(template)
        rendered.clear()
        assert not find_tool_format(template, reasoning).writes_calls
        assert 0 < len(rendered) <= PROBE_MAX_SECONDS + 1


def test_templates_of_no_tools() -> None:
    """A template that knows no tools tells of none, and what is written instead is the usual format."""
    form = find_tool_format(ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}"), None)
    assert (form.lists_tools, form.writes_calls) == (False, False)

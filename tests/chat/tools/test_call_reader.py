"""chat/tools/call_reader.py: the calls in a model's text are read, however the text is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.golden_chats import CASES, NOT_AS_EXPECTED, known, read, same
from helpers.tools import TOOLS, WRITTEN, calls, read_calls
from offgrid_llama.chat.tools.call_format import Slot, ToolFormat
from offgrid_llama.chat.tools.call_messages import tool_messages
from offgrid_llama.chat.tools.call_reader import ToolReader


def test_cases_of_llama_cpp() -> None:
    """All but those listed are read as expected, at once and character by character; none of those listed is by now."""
    others = {number for numbers in NOT_AS_EXPECTED.values() for number in numbers}
    wrong = set()
    for number, case in enumerate(CASES):
        try:
            whole, pieces = read(case, len(case["input"]) or 1), read(case, 1)
        except og.ChatTemplateError:
            wrong.add(number)
            continue
        assert whole == pieces, case["input"]
        if not same(case, whole):
            wrong.add(number)
    assert wrong == others
    assert len(CASES) - len(wrong) == 408


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=15)
@given(calls=calls, step=st.integers(1, 40))
def test_what_templates_write(name: str, calls: list[tuple[str, dict[str, Any]]], step: int) -> None:
    """Calls that a template writes of a conversation, and those that we write for it, are read as what they were."""
    template, form, _ = known(name)
    calls = calls if form.separator is not None else calls[:1]
    described = [(call, arguments, f"call{i}abcd") for i, (call, arguments) in enumerate(calls)]
    question = f"Do it in {len(TOOLS)} steps."  # no constant: hypothesis puts those of this file into arguments
    asked = {"role": "user", "content": question}
    tool_calls = [
        {"type": "function", "id": id_, "function": {"name": call, "arguments": json.dumps(arguments)}}
        for call, arguments, id_ in described
    ]
    messages = tool_messages([asked, {"role": "assistant", "content": None, "tool_calls": tool_calls}], form)
    rendered = template.render(messages, add_generation_prompt=False, tools=[tool.as_dict() for tool in TOOLS])
    mark = form.write(described)
    answer = rendered[rendered.rfind(question) :]
    for text in (answer[answer.find(form.trigger or calls[0][0]) :], mark):
        found = read_calls(form, text, step)[1]
        assert found == calls, text


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_texts_that_are_fenced(step: int) -> None:
    """A template that writes texts with signs of markup as CDATA is found out about, and what it writes is read."""
    template, form, _ = known("openbmb-MiniCPM5-1B.jinja")
    assert form.tags is not None
    assert form.tags.fence == ("<![CDATA[", "]]>")
    for city in ("a & b", "<b>\n</param></function> [[", "plain", "<![CDATA", ""):
        arguments = {"city": city, "days": 3}
        described = [("get_weather", arguments, "call1abcd")]
        call = {"type": "function", "function": {"name": "get_weather", "arguments": json.dumps(arguments)}}
        asked: list[dict[str, Any]] = [{"role": "user", "content": "Do it."}]
        asked.append({"role": "assistant", "content": None, "tool_calls": [call]})
        rendered = template.render(tool_messages(asked, form), tools=[tool.as_dict() for tool in TOOLS])
        written = form.write(described)
        assert written in rendered
        assert read_calls(form, written, step)[1] == [("get_weather", arguments)]


@pytest.mark.parametrize("name", [name for name in WRITTEN if known(name)[1].anywhere])
def test_text_before_and_after(name: str) -> None:
    """A model's text besides its calls is content; text that only looks like a call is, too."""
    form = known(name)[1]
    text = form.write([("clock", {"utc": True}, "call0abcd")])
    if form.headers is not None:
        return
    assert read_calls(form, f"I look.{text}", 3) == ("I look.", [("clock", {"utc": True})])
    assert read_calls(form, f"Say {form.trigger} of it.", 2)[0].replace(" ", "") == f"Say{form.trigger}ofit.".replace(
        " ", ""
    )
    assert read_calls(form, "Nothing.\n", 4) == ("Nothing.\n", [])


def test_calls_without_a_mark() -> None:
    """In a format whose calls begin with the name, a call is known by the name of a tool; all other text is content."""
    form = ToolFormat("", "", (Slot.NAME, ": ", Slot.ARGUMENTS), "\n")
    for step in (1, 5, 1000):
        assert read_calls(form, 'clock: {"utc": true}', step) == ("", [("clock", {"utc": True})])
        assert read_calls(form, "The watch: broken.", step) == ("The watch: broken.", [])


def test_arguments_before_the_name() -> None:
    """A format in which a call's arguments come first loses none of them."""
    pieces = ('<call>{"arguments": ', Slot.ARGUMENTS, ', "name": "', Slot.NAME, '"}</call>')
    form = ToolFormat("", "", pieces, "\n")
    for step in (1, 5, 1000):
        written = form.write([("clock", {"utc": True}, ""), ("clock", {}, "")])
        assert read_calls(form, f"Now.\n{written}", step) == ("Now.", [("clock", {"utc": True}), ("clock", {})])
        other = form.write([("o_clock", {"utc": True}, "")])
        assert read_calls(form, other, step) == (other, [])


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("before", ["", "I look. "])
def test_texts_that_are_cut(name: str, before: str) -> None:
    """Of a call that is cut off nothing is content, wherever the cut is; the text before it is, up to its last character."""
    form = known(name)[1]
    if before and (not form.anywhere or form.headers is not None):
        return
    written = form.write([("get_weather", {"city": "Bern"}, "abcdefghi")])
    text = before + (written if before else written.lstrip())
    for end in range(len(before) + 1, len(text)):
        reader = ToolReader(form, TOOLS, lambda index: f"id{index}")
        told = [reader.push(text[:end]), reader.finish(cut=True)]
        content = "".join(each.content for each in told)
        assert content.strip() == before.strip(), text[:end]


def test_texts_that_end_like_a_mark() -> None:
    """A text that ends by itself is content as a whole, also where it ends with the beginning of a mark."""
    form = known("Qwen-Qwen2.5-7B-Instruct.jinja")[1]
    for text in ("a <", "a <tool_call>", '<tool_call>\n{"name": "get_w'):
        assert read_calls(form, text, 3) == (text, [])


def test_a_piece_has_one_delta_for_each_call() -> None:
    """A piece of text adds one delta to a call, also where it begins the call; so clients count calls rightly."""
    form = known("Qwen-Qwen2.5-7B-Instruct.jinja")[1]
    text = form.write([("get_weather", {"city": "Bern"}, ""), ("clock", {}, "")])
    reader = ToolReader(form, TOOLS, lambda index: f"id{index}")
    told = reader.push(text).followed_by(reader.finish())
    assert [(delta.index, delta.name, delta.arguments) for delta in told.calls] == [
        (0, "get_weather", '{"city": "Bern"}'), (1, "clock", "{}"),
    ]  # fmt: skip

"""Calls of other models' histories, on the real templates of llama.cpp's submodule."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.golden_chats import TEMPLATES, known
from offgrid_llama.chat.fitting import Fitting
from offgrid_llama.chat.tools.call_fitting import CallFitting
from offgrid_llama.chat.tools.call_messages import read_calls, tool_messages

NEEDS_MORE = {"fireworks-ai-llama-3-firefunction-v2.jinja", "llama-cpp-deepseek-r1.jinja"}
"""Templates that need variables of their own, or write a generator as JSON, which jinja2 refuses."""
NAMES = sorted({path.name for path in TEMPLATES.glob("*.jinja")} - NEEDS_MORE)
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {
    "type": "object", "properties": {"at": {"type": "string", "description": "A place."}},
}}}  # fmt: skip
USER: dict[str, Any] = {"role": "user", "content": "UUU"}


def call(at: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look", "arguments": json.dumps({"at": at})}, **more}


def calls(*made: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(made)}


def result(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


LONG = "call_Abc123Def456Ghi789Jkl012"
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a long id": [USER, calls(call("AAA", id=LONG)), result("BBB", tool_call_id=LONG)],
    "two at once": [
        USER, calls(call("AAA", id="a-1"), call("BBB", id="a-2")), result("CCC", tool_call_id="a-1"),
        result("DDD", tool_call_id="a-2"),
    ],
    "results in another order": [
        USER, calls(call("AAA", id="a-1"), call("BBB", id="a-2")), result("DDD", tool_call_id="a-2"),
        result("CCC", tool_call_id="a-1"),
    ],
    "no ids": [USER, calls(call("AAA"), call("BBB")), result("CCC"), result("DDD")],
    "an empty answer": [USER, {"role": "assistant", "content": ""}, {"role": "user", "content": "AAA"}],
}  # fmt: skip


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_template_takes_it(name: str, conversation: str) -> None:
    """The template writes calls of any model, with any ids, and their results."""
    template, form, _ = known(name)
    fitting = Fitting(template)
    messages = read_calls(CONVERSATIONS[conversation])
    fitted = tool_messages(CallFitting(template, form).fit(fitting.fit_roles(messages)), form)
    written = template.render(fitting.fit_rows(fitted), tools=[TOOL])
    for text in ("UUU", "AAA", "BBB", "CCC", "DDD"):
        assert text in written or text not in str(messages)


def test_one_at_a_time() -> None:
    """Where a template takes one call in a message, each result follows its call; ids stay where any is taken."""
    template, form, _ = known("meta-llama-Llama-3.2-3B-Instruct.jinja")
    made = CallFitting(template, form).fit(read_calls(CONVERSATIONS["results in another order"]))
    told = [message.get("content") or message["tool_calls"][0]["id"] for message in made]
    assert told == ["UUU", "a-1", "CCC", "a-2", "DDD"]
    template, form, _ = known("Qwen3-Coder.jinja")
    same = read_calls(CONVERSATIONS["results in another order"])
    assert CallFitting(template, form).fit(same) == same


def test_ids_that_are_short() -> None:
    """Where a template takes no others, all calls are numbered, and the results go with them."""
    template, form, _ = known("mistralai-Mistral-Nemo-Instruct-2407.jinja")
    made = CallFitting(template, form).fit(read_calls(CONVERSATIONS["results in another order"]))
    assert [each["id"] for each in made[1]["tool_calls"]] == ["000000000", "000000001"]
    assert [message["tool_call_id"] for message in made[2:]] == ["000000001", "000000000"]


def test_results_without_ids() -> None:
    """They are those of the calls in their order; one more belongs to none."""
    made = read_calls([USER, calls(call("AAA"), call("BBB", id="b")), result("CCC"), result("DDD"), result("EEE")])
    ids = [each["id"] for each in made[1]["tool_calls"]]
    assert ids[1] == "b"
    assert [message.get("tool_call_id") for message in made[2:]] == [*ids, None]

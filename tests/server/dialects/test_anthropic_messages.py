"""Anthropic's conversations as templates know them."""

from __future__ import annotations

from typing import Any

import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.anthropic_messages import openai_messages
from offgrid_llama.server.dialects.anthropic_schemas import CountRequest
from offgrid_llama.server.dialects.anthropic_signature import SHOWN, hidden, signature

USE = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "a"}}
ASKED = {"role": "user", "content": "Look."}
USED = {"role": "assistant", "content": [USE]}
CALL = {"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": {"at": "a"}}}


def made(*messages: dict[str, Any], system: Any = None) -> list[dict[str, Any]]:
    body = CountRequest.model_validate({"messages": list(messages), "system": system})
    return openai_messages(body.system, body.messages)


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def result(**more: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", **more}]}


def test_texts() -> None:
    """A text and a list of text blocks are the same; the system prompt comes first, others stay where they are."""
    expected = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Look."}]
    blocks = [text("Lo", cache_control={"type": "ephemeral"}), text("ok.", citations=None)]
    for system in ("Be terse.", [text("Be "), text("terse.", cache_control={"type": "ephemeral", "ttl": "1h"})]):
        for content in ("Look.", blocks):
            assert made({"role": "user", "content": content}, system=system) == expected
    late = made(ASKED, {"role": "system", "content": [text("Be terse.")]}, {"role": "assistant", "content": []})
    assert late == [expected[1], expected[0], {"role": "assistant", "content": ""}]
    assert made({"role": "user", "content": []}) == [{"role": "user", "content": ""}]


def test_calls_and_results() -> None:
    """Calls belong to the assistant's message, results are messages of their own, before what the user says."""
    both = {"role": "assistant", "content": [text("I look."), USE]}
    answered = {"role": "user", "content": [text("Well?"), *result(content=[text("x"), text("y")])["content"]]}
    assert made(ASKED, both, answered)[1:] == [
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "xy"}, {"role": "user", "content": "Well?"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ({}, ""), ({"content": None}, ""), ({"content": "x"}, "x"), ({"content": "x", "is_error": False}, "x"),
        ({"content": [], "is_error": True}, "Error: "), ({"content": "no", "is_error": True}, "Error: no"),
        ({"content": [{"type": "tool_reference", "tool_name": "look"}]}, "look"),
    ],
)  # fmt: skip
def test_results(said: dict[str, Any], content: str) -> None:
    """A result may be missing, a text or blocks; that it is an error is said in its text."""
    assert made(ASKED, USED, result(**said))[-1]["content"] == content


def test_a_result_of_no_call() -> None:
    """It is refused, with its place: templates would fail on it, or show it as the result of another call."""
    for messages in ((result(),), (ASKED, result(), USED)):
        with pytest.raises(ApiError, match="no tool_use block before it has the id 'toolu_1'") as refused:
            made(*messages)
        assert refused.value.param == f"messages.{len(messages) // 2}.content.0.tool_use_id"


def test_thinking() -> None:
    """The model's thinking goes back to it, from the signature if the client has not seen it."""

    def thought(*blocks: dict[str, Any]) -> Any:
        return made(ASKED, {"role": "assistant", "content": [*blocks, text("Hi.")]})[1].get("reasoning_content")

    seen = {"type": "thinking", "thinking": "Hm.", "signature": SHOWN}
    unseen = {"type": "thinking", "thinking": "", "signature": signature("Höm.")}
    other = {"type": "thinking", "thinking": "", "signature": "EqQBCgIYAhIM"}
    redacted = {"type": "redacted_thinking", "data": "EqQBCgIYAhIM"}
    assert [thought(block) for block in (seen, unseen, other, redacted)] == ["Hm.", "Höm.", None, None]
    assert thought(seen, unseen) == "Hm.\nHöm."
    assert thought() is None


@pytest.mark.parametrize("given", [None, "", SHOWN, f"{SHOWN}:", f"{SHOWN}:é", f"{SHOWN}:_", f"{SHOWN}:/w==", "a:aGk="])
def test_signatures_with_nothing_in_them(given: str | None) -> None:
    """A signature of another server, or one that was changed, has no text, and is no error."""
    assert hidden(given) == ""


def test_the_line_of_claude_code_that_is_not_for_the_model() -> None:
    """It differs in each request: with it, no prompt would have the beginning of the one before."""
    line = "x-anthropic-billing-header: cc_version=2.1; cch=36ee5;"
    for system in (f"{line}\nBe terse.", [text(line), text("Be terse.")], [text(f"{line}\nBe "), text("terse.")]):
        assert made(ASKED, system=system)[0] == {"role": "system", "content": "Be terse."}
    assert made(ASKED, system=f"Say {line}")[0]["content"] == f"Say {line}"
    assert made({"role": "user", "content": line})[0]["content"] == line

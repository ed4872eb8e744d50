"""Items of requests: what is refused, how they are listed, and the messages that they become."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses.response_item import ResponseItem

from helpers.apps import ask
from helpers.official import check
from offgrid_llama.server import create_app
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.responses_items import (
    input_items,
    item_id,
    new_response_id,
    references,
    response_of_item,
    sealed,
)
from offgrid_llama.server.dialects.responses_messages import messages_of
from offgrid_llama.server.dialects.responses_schemas import ResponseRequest

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "r"}
WANTED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def items(given: Any, **referenced: Any) -> list[dict[str, Any]]:
    return input_items(ResponseRequest.model_validate({"input": given}).input, "resp_ab", referenced)


def messages(given: Any) -> list[dict[str, Any]]:
    return messages_of(items(given))


@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ({"type": "web_search_call"}, "type", "'web_search_call' are not supported"), ("a", None, "an item"),
        ({"role": "user", "content": [{"type": "input_file", "file_url": "a"}]}, "content.0.type", "'input_file'"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "content.0.image_url", "required"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "a"}]}, "content.0.type", "'input_file'"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "content.0.text", "required"),
        ({"role": "user", "content": 5}, "content", "a list of parts"), ({"role": "user"}, "content", "required"),
        ({"role": "tool", "content": "a"}, "role", "'user'"), ({"role": "user", "content": "a", "id": ""}, "id", "1 char"),
        ({**CALL, "arguments": "["}, "arguments", "not valid JSON"), ({**CALL, "name": ""}, "name", "1 character"),
        ({**CALL, "arguments": {}}, "arguments", "valid string"), ({"type": "function_call"}, "call_id", "required"),
        ({**RESULT, "output": [{"type": "input_file"}]}, "output.0.type", "'input_file'"),
        ({"type": "item_reference"}, "id", "required"), ({"type": "reasoning", "summary": 5}, "summary", "valid list"),
    ],
)  # fmt: skip
def test_what_is_refused(given: Any, param: str | None, says: str) -> None:
    """An item that cannot be read is refused with its place, and one of an unknown kind by its name."""
    body = {"input": [{"role": "user", "content": "a"}, given]}
    found = ask(create_app(models=[]), "POST", "/v1/responses", json=body)
    error = found.json()["error"]
    place = "input.1" if param is None else f"input.1.{param}"
    assert (found.status_code, error["code"], error["param"]) == (400, "invalid_value", place)
    assert says in error["message"]


@pytest.mark.parametrize("given", ["", [], 5, None, {}])
def test_inputs_that_are_none(given: Any) -> None:
    """There is a text, which may be empty, or an item."""
    found = ask(create_app(models=[]), "POST", "/v1/responses", json={"input": given})
    assert found.status_code == (404 if given == "" else 400)


EVERY_KIND = [
    {"role": "user", "content": "a"},
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "b"}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": [], "x": 1}], "phase": None},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, CALL, RESULT,
    {**CALL, "status": None, "id": "own"}, {**CALL, "namespace": "n"},
    {**RESULT, "output": [{"type": "input_text", "text": "r"}]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": None},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t"}]},
    {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "i"},
    {"type": "custom_tool_call_output", "call_id": "d", "output": "o"},
]  # fmt: skip


def test_what_is_listed() -> None:
    """Items are listed in OpenAI's shapes; one has the id that the client gave it, or one of ours."""
    found = items(EVERY_KIND)
    for item in found:
        check(ResponseItem, item)
    assert found[0]["id"] == "msg_ab0000"
    assert found[6]["id"] == "own"
    assert len({item["id"] for item in found}) == len(found)
    assert items("a") == items([{"role": "user", "content": "a"}])
    assert items(found) == found


def test_ids() -> None:
    """An item's id tells its response."""
    id_ = new_response_id()
    assert response_of_item(item_id("function_call", id_, 300)) == id_
    assert item_id("message", id_, 0) != item_id("message", id_, 1)
    for foreign in ("", "a", "msg_", "rs_0001"):
        assert response_of_item(foreign) != id_


def test_references() -> None:
    """A reference is the item that it names."""
    item = items("a")[0]
    given = [{"type": "item_reference", "id": "x"}, {"id": "y"}, {"role": "user", "content": "b"}]
    assert references(ResponseRequest.model_validate({"input": given}).input) == ["x", "y"]
    assert items(given, x=item, y=item)[:2] == [item, item]


def test_messages() -> None:
    """Texts are joined, and each item of a person is a message."""
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    found = messages([{"role": "system", "content": parts}, {"role": "developer", "content": "c"}])
    assert found == [{"role": "system", "content": "ab"}, {"role": "developer", "content": "c"}]
    assert messages_of(items("a"), "i") == [{"role": "system", "content": "i"}, {"role": "user", "content": "a"}]
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    assert messages([refusal]) == [{"role": "assistant", "content": "no"}]


def test_a_turn_of_the_assistant() -> None:
    """Reasoning, text and calls are one message, as chat completions have them; their results follow."""
    reasoning = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t"}]}
    text = {"role": "assistant", "content": "a"}
    found = messages([reasoning, text, CALL, {**CALL, "call_id": "d"}, RESULT, {**RESULT, "call_id": "d"}])
    calls = [WANTED, {**WANTED, "id": "d"}]
    assert found == [
        {"role": "assistant", "content": "a", "reasoning_content": "t", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": "r"}, {"role": "tool", "tool_call_id": "d", "content": "r"},
    ]  # fmt: skip
    assert messages([CALL, RESULT, CALL])[2] == {"role": "assistant", "content": None, "tool_calls": [WANTED]}
    assert messages([text, reasoning, CALL])[1] == {
        "role": "assistant", "content": None, "reasoning_content": "t", "tool_calls": [WANTED],
    }  # fmt: skip
    left = messages([reasoning, {"role": "user", "content": "u"}, text])
    assert left == [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


def test_calls_of_custom_tools() -> None:
    """They are calls of functions with one argument."""
    found = messages(EVERY_KIND[-2:])
    assert found[0]["tool_calls"][0]["function"] == {"name": "g", "arguments": '{"input": "i"}'}
    assert found[1] == {"role": "tool", "tool_call_id": "d", "content": "o"}


def test_reasoning_that_a_client_keeps() -> None:
    """It comes back as the text that it was; what another server has sealed is not read."""
    after = {"role": "assistant", "content": "a"}
    for content, wanted in ((sealed("t"), "t"), ("gAAAA", None), ("text:%", None), ("text:/w==", None)):
        (found,) = messages([{"type": "reasoning", "encrypted_content": content}, after])
        assert found.get("reasoning_content") == wanted


def test_results_without_a_call() -> None:
    """A result belongs to a call before it."""
    with pytest.raises(ApiError, match="No tool call found for function call output with call_id c"):
        messages([RESULT, CALL])


def test_calls_that_were_cut() -> None:
    """A client may send one back as it came, with what it has made of it: both are left out."""
    cut = {**CALL, "arguments": '{"a', "status": "incomplete"}
    (found, _) = items([cut, RESULT])
    assert found["status"] == "incomplete"
    assert messages([{"role": "user", "content": "a"}, cut, RESULT]) == [{"role": "user", "content": "a"}]


def test_calls_in_a_namespace() -> None:
    """The model calls them by their whole name."""
    (turn,) = messages([{**CALL, "namespace": "n"}])
    assert turn["tool_calls"][0]["function"]["name"] == "n.f"

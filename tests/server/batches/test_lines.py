"""Lines of batch files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.batches.lines import custom_id_of, read_line, response_line
from offgrid_llama.server.dialects.dialect import Asked
from offgrid_llama.server.dialects.openai_vectors import AskedVectors
from offgrid_llama.worker.frames import Answered, TokenCounts
from offgrid_llama.worker.generation import Conversation, Texts

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
LINE: dict[str, Any] = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": BODY}


def line(**change: Any) -> bytes:
    return json.dumps({**LINE, **change}).encode()


def test_requests() -> None:
    """A line has a request of one of the endpoints, which is never a stream."""
    asked = read_line(line(body={**BODY, "stream": True, "stream_options": {}}), 1000).asked()
    assert isinstance(asked, Asked)
    assert isinstance(asked.what, Conversation)
    assert (asked.model, asked.stream) == ("m", False)
    text = read_line(line(url="/v1/completions", body={"prompt": ["a", "b"]}, wibble=1), 1000).asked()
    assert isinstance(text, Asked)
    assert isinstance(text.what, Texts)
    assert text.n_completions == 2
    vectors = read_line(line(url="/v1/embeddings", body={"input": "a"}), 1000).asked()
    assert isinstance(vectors, AskedVectors)
    assert vectors.texts == ["a"]
    response = read_line(line(url="/v1/responses", body={"input": "a", "stream": True}), 1000).asked()
    assert isinstance(response, Asked)
    assert (response.stream, response.in_chunks) == (False, True)
    assert response.writer("m").whole(Answered(1, TokenCounts(1, 0, 1)))["store"] is False


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "the line is not valid JSON"), (b"[]", "the line: Input should be an object"),
        (line(custom_id=""), "custom_id: "),
        (line(url="/v1/files"), "url: "), (line(method="GET"), "method: "), (line(body=[]), "body: "),
        (line(body={"a": "b" * 1000}), "1,000 are allowed"), (b'{"custom_id": "1"}', "url: Field required"),
        (line(body=None), "body: "),
    ],
)  # fmt: skip
def test_lines_that_are_no_requests(data: bytes, says: str) -> None:
    """The error says what is wrong with the line."""
    with pytest.raises(ApiError, match="(?i)" + says):
        read_line(data, 1000)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "a", "background": True}, "background"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
    ],
)
def test_responses_in_a_batch_stand_alone(body: dict[str, Any], param: str) -> None:
    """No request of a batch goes on from a response that is kept, or has its own kept."""
    with pytest.raises(ApiError, match="batch") as refused:
        read_line(line(url="/v1/responses", body=body), 1000).asked()
    assert (refused.value.status, refused.value.param) == (400, param)


def test_bodies_are_looked_at_later() -> None:
    """A body that the API would refuse is an error of its request."""
    wrong = read_line(line(body={"messages": [], "wibble": 1}), 1000)
    with pytest.raises(ApiError, match="wibble"):
        wrong.asked()


def test_responses() -> None:
    """A line that answers a request names it, and has OpenAI's shape; other lines do not."""
    data = response_line("a", 200, {"b": 1})
    assert data.endswith(b"}\n")
    assert custom_id_of(data) == "a"
    found = json.loads(data)
    assert found["response"]["body"] == {"b": 1}
    assert (found["response"]["status_code"], found["error"]) == (200, None)
    assert [custom_id_of(each) for each in (b"", b"{", line(), data[:-5])] == [None] * 4

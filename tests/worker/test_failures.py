"""Exceptions of a worker, and the errors that clients get."""

from __future__ import annotations

import pytest

from offgrid_llama.errors import ClosedError, ContextLengthError, DecodeError, GrammarError, MediaError, QueueFullError
from offgrid_llama.server.dialects.openai_options import names
from offgrid_llama.worker.failures import RequestError, client_data, failure


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextLengthError("too long", n_tokens=2, n_ctx=1), 400, "context_length_exceeded"),
        (QueueFullError("full", n_waiting=1), 503, "queue_full"),
        (GrammarError("bad"), 400, "invalid_value"), (MediaError("bad"), 400, "invalid_value"),
        (RequestError("bad"), 400, "invalid_value"),
        (ValueError("bug"), 500, "internal_error"), (ClosedError("closed"), 503, "model_closed"),
        (DecodeError("no numbers", code=-3, memory_restored=True), 500, "internal_error"),
        (RuntimeError("bug"), 500, "internal_error"),
    ],
)  # fmt: skip
def test_status_and_code(error: Exception, status: int, code: str) -> None:
    """Errors of the request are 400, errors that pass are 503, all others 500 with their type and message."""
    frame = failure(3, error)
    assert (frame.id, frame.status, frame.code) == (3, status, code)
    assert status != 500 or str(error) in frame.message


class UnknownError(Exception):
    """An exception that no list has."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownError("bad"), 400), (RecursionError("bad"), 400), (KeyError("bad"), 400), (ArithmeticError("bad"), 400),
        (AssertionError("bad"), 400), (ValueError("bad"), 400), (GrammarError("bad"), 400), (RequestError("bad"), 400),
        (QueueFullError("full", n_waiting=1), 503), (ClosedError("closed"), 503), (MemoryError("none"), 500),
        (DecodeError("no numbers", code=-3, memory_restored=True), 500),
        (ContextLengthError("too long", n_tokens=2, n_ctx=1), 400),
    ],
)  # fmt: skip
def test_what_fails_on_a_clients_data(error: Exception, status: int, caplog: pytest.LogCaptureFixture) -> None:
    """A failure where a client's data is used is the client's fault, of any type, unless the machine says no."""
    with pytest.raises((type(error), RequestError)) as raised, client_data():
        raise error
    frame = failure(3, raised.value)
    assert frame.status == status
    assert "bad" not in str(error) or "bad" in frame.message
    assert "bad" not in caplog.text


@pytest.mark.parametrize(
    ("error", "message", "param"),
    [
        ("texts[0] gives no tokens", "input[0] gives no tokens", "input"),
        ("the grammar has 70,000 bytes", "response_format has 70,000 bytes", "response_format"),
        ("schema, at /items: bad", "response_format, at /items: bad", "response_format"),
        ("tools[2]: bad", "tools[2]: bad", "tools"), ("nothing of that", "nothing of that", None),
        ("prompt[7] must be from 0 to 9, not 12", "prompt[3][7] must be from 0 to 9, not 12", "prompt"),
    ],
)  # fmt: skip
def test_errors_name_the_fields_of_the_request(error: str, message: str, param: str | None) -> None:
    """The argument of the library with which a message begins becomes the client's field, and the error's param."""
    fields = names({"response_format": {}, "tools": []}, "prompt[3]") | {"texts": "input"}
    with pytest.raises(RequestError) as raised, client_data(fields):
        raise ValueError(error)
    frame = failure(3, raised.value)
    assert (frame.message, frame.param, frame.code) == (message, param, "invalid_value")


def test_a_text_that_is_too_long() -> None:
    """One to be completed is told in OpenAI's words, others with their place and limit; none gives a program advice."""
    advice = "make the engine with a larger n_ctx, or use truncate=True"
    with pytest.raises(RequestError) as raised, client_data(names({}, "messages"), 16):
        raise ContextLengthError(advice, n_tokens=2100, n_ctx=2048)
    frame = failure(3, raised.value)
    assert frame.message.startswith(
        "This model's maximum context length is 2048 tokens. However, you requested 2116 tokens"
    )
    assert "(2100 in the messages, 16 in the completion)" in frame.message
    assert (frame.status, frame.code, frame.param) == (400, "context_length_exceeded", "messages")
    assert frame.details == {"n_tokens": 2100, "n_ctx": 2048}
    with pytest.raises(RequestError) as raised, client_data({"texts": "input"}):
        raise ContextLengthError(advice, n_tokens=802, n_ctx=512, argument="texts[0]")
    frame = failure(3, raised.value)
    assert (frame.message, frame.param) == ("input[0] has 802 tokens, more than 512", "input")
    assert frame.code == "context_length_exceeded"

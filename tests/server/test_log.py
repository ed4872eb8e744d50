"""The server's log under a flood of errors."""

from __future__ import annotations

import logging

import pytest

from helpers.apps import ask
from offgrid_llama.server import create_app
from offgrid_llama.server.log import KIND, RateLimit


def test_one_line_a_second_of_a_kind() -> None:
    """Of the warnings of one place, one a second passes and counts the others; other places and access lines all pass."""
    limit = RateLimit()

    def passed(line: int, seconds: float, level: int = logging.WARNING, kind: object = None) -> str | None:
        record = logging.LogRecord("a", level, "file", line, "%s is full", ("it",), None)
        record.created = seconds
        if kind is not None:
            setattr(record, KIND, kind)
        return record.getMessage() if limit.filter(record) else None

    told = [message for n in range(2500) if (message := passed(1, 100 + n / 1000)) is not None]
    assert told == ["it is full", "it is full (999 more like this before)", "it is full (999 more like this before)"]
    assert passed(2, 102.5) == "it is full"
    assert [passed(3, 103, logging.INFO) for _ in range(3)] == ["it is full"] * 3
    assert [passed(4, 103, logging.INFO, kind) is None for kind in ("a", "a", "b", "a")] == [False, True, False, True]


def test_lines_of_requests(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> None:
    """Refused requests and those of no model are logged once a second for each path and status; the metrics count all."""
    app = create_app(models=[])
    caplog.set_level(logging.INFO, "offgrid_llama.server")
    limit = RateLimit()
    caplog.handler.addFilter(limit)
    request.addfinalizer(lambda: caplog.handler.removeFilter(limit))  # the handler is that of all tests
    for _ in range(20):
        for path in ("/health", "/a", "/b", "/v1/models"):
            ask(app, "GET", path)
    lines = [record.getMessage() for record in caplog.records]
    seconds = 1 + caplog.records[-1].created - caplog.records[0].created
    for path in ("/health 200", "other 404", "/v1/models 200"):
        assert 1 <= sum(path in line for line in lines) <= seconds
    assert 'path="other",status="404"} 40.0' in ask(app, "GET", "/metrics").text

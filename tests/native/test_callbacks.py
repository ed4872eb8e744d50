"""The log, and the exceptions of callbacks."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import offgrid_llama as og
from offgrid_llama._capi import ffi, lib
from offgrid_llama.native import callbacks


def say(level: int, text: str) -> None:
    """Log as llama.cpp would."""
    callbacks.og_on_log(level, ffi.new("char[]", text.encode()), ffi.NULL)


@pytest.fixture(autouse=True)
def silence() -> None:
    """Begin with nothing logged."""
    callbacks.forget_log()


def test_the_log_goes_to_logging(smollm2_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An application that turns the logger on sees llama.cpp's own lines, at their own levels."""
    with caplog.at_level(logging.INFO, logger="offgrid_llama.llama_cpp"), og.Model(smollm2_path, vocab_only=True):
        pass
    assert any("llama_model_loader" in record.message for record in caplog.records)
    assert {record.name for record in caplog.records} == {"offgrid_llama.llama_cpp"}
    assert not any(record.message.endswith("\n") for record in caplog.records)


def test_the_log_is_quiet_by_default(smollm2_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Loading and running a model writes nothing to stdout and stderr."""
    with og.Model(smollm2_path) as model, og.Context(model, n_ctx=64) as context:
        batch = og.Batch(1)
        batch.add(1, 0, [0], logits=True)
        context.decode(batch)
    assert capfd.readouterr() == ("", "")


def test_errors_carry_the_last_lines(tmp_path: Path) -> None:
    """A model that llama.cpp refuses gives an error with its path and llama.cpp's reason."""
    path = tmp_path / "no-architecture.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with pytest.raises(og.ModelLoadError) as caught:
        og.Model(path)
    assert str(path) in str(caught.value)
    assert "architecture" in str(caught.value)
    assert all(not line.endswith("\n") for line in caught.value.log)


def test_lines_in_pieces_are_joined(caplog: pytest.LogCaptureFixture) -> None:
    """A line that comes in pieces is one record, at the level of its first piece; dots of progress are none."""
    with caplog.at_level(logging.DEBUG, logger="offgrid_llama.llama_cpp"):
        say(lib.GGML_LOG_LEVEL_WARN, "half ")
        say(lib.GGML_LOG_LEVEL_CONT, "a line\nand ")
        say(lib.GGML_LOG_LEVEL_CONT, "more\n")
        say(lib.GGML_LOG_LEVEL_INFO, "...")
        say(lib.GGML_LOG_LEVEL_CONT, "...\n")
    assert [(r.levelno, r.message) for r in caplog.records] == [(30, "half a line"), (30, "and more")]


def test_recent_log_prefers_what_is_grave() -> None:
    """An error carries the warnings and errors since the call began, or the last lines if there are none."""
    say(lib.GGML_LOG_LEVEL_INFO, "one\ntwo\nthree\nfour\n")
    assert callbacks.recent_log() == ("two", "three", "four")
    say(lib.GGML_LOG_LEVEL_ERROR, "bad\n")
    assert callbacks.recent_log() == ("bad",)
    callbacks.forget_log()
    assert callbacks.recent_log() == ()


def test_an_exception_in_a_log_handler_reaches_the_caller(smollm2_path: Path) -> None:
    """An exception of a logging handler ends the call that logged; it does not pass through C."""

    class Angry(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("no logs today")

    logger, angry = logging.getLogger("offgrid_llama.llama_cpp"), Angry()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addFilter(angry)
    try:
        with pytest.raises(RuntimeError, match="no logs today"):
            og.Model(smollm2_path)
    finally:
        logger.removeFilter(angry)
        logger.setLevel(level)
    with og.Model(smollm2_path, vocab_only=True) as model:
        assert model.vocab.n_tokens == 49152

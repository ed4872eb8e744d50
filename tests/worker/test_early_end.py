"""Answers for editors end after a time, or at a line that is indented less."""

from __future__ import annotations

import pytest

from offgrid_llama.worker.early_end import early_end


@pytest.mark.parametrize(
    ("text", "seconds", "ends"), [("a", 9, False), ("a\n", 1, False), ("a\n", 2.5, True), ("a\nb", 1.9, False)]
)
def test_after_a_time(text: str, seconds: float, ends: bool) -> None:
    """The time counts once there is a line break."""
    end = early_end(2.0, 0)
    assert end is not None
    assert end(text, seconds) is ends


@pytest.mark.parametrize(
    ("text", "ends"),
    [("a", False), ("a\n", False), ("a\n  ", False), ("a\n    b", False), ("a\n   b", True), ("a\n\n    b\nc", True)],
)
def test_at_a_line_that_is_indented_less(text: str, ends: bool) -> None:
    """The first line and empty ones do not count, and a line counts once it has begun."""
    end = early_end(None, 4)
    assert end is not None
    assert end(text, 0.0) is ends


def test_no_end() -> None:
    """Without limits nothing is looked at."""
    assert early_end(None, 0) is None

"""Files of subtitles."""

from __future__ import annotations

from offgrid_llama.engine.transcription import Segment
from offgrid_llama.text.subtitles import srt, vtt

SEGMENTS = [Segment(0, 1.2345, "Hello"), Segment(3725.5, 360_000, "a < b & c --> d\n\n  two lines\n")]


def test_srt() -> None:
    """Numbered from 1, with a comma in the times; no empty line within, as it would end a subtitle."""
    assert srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:01,234\nHello\n\n"
        "2\n01:02:05,500 --> 100:00:00,000\na < b & c --> d\ntwo lines\n\n"
    )  # fmt: skip
    assert srt([]) == ""


def test_vtt() -> None:
    """With a head, a point in the times, and the marks of WebVTT written out."""
    assert vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.234\nHello\n\n"
        "01:02:05.500 --> 100:00:00.000\na &lt; b &amp; c --&gt; d\ntwo lines\n\n"
    )  # fmt: skip
    assert vtt([]) == "WEBVTT\n\n"

"""OpenAI's transcriptions and translations, by a model that hears 400 Hz as " dog" and 800 Hz as " cat"."""

from __future__ import annotations

import io
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from helpers.projectors import tone
from helpers.serving import Served

ORDER = "Repeat this word once:"
WORDS = (" dog", " cat")


def talk() -> bytes:
    """Return a WAV file of two words, with a pause behind each."""
    file = io.BytesIO()
    parts = [np.concatenate([0.5 * tone(word, 20), np.zeros(3200, np.float32)]) for word in WORDS]
    soundfile.write(file, np.concatenate(parts), 16000, format="WAV")
    return file.getvalue()


TALK = talk()
FIELDS = {"model": "seeing", "instruction": ORDER, "window_seconds": "1", "seed": "-1"}


def post(
    served: Served, fields: dict[str, Any], *, path: str = "/v1/audio/transcriptions", file: bytes = TALK
) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", data=fields, files={"file": ("talk.wav", file)}, timeout=240)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check(text: str) -> None:
    assert re.search(r"dog.*cat", text, re.DOTALL), text


def test_json(seeing: Served) -> None:
    """The text, the usage, and logprobs of its tokens if they are wanted; at llama-server's path, too."""
    answer = post(seeing, {**FIELDS, "include[]": "logprobs", "response_format": "json"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    check(body["text"])
    assert body["usage"]["type"] == "tokens"
    assert body["usage"]["input_tokens"] > 40
    assert len(body["logprobs"]) == body["usage"]["output_tokens"] > 1
    assert all(each["logprob"] <= 0 for each in body["logprobs"])
    other = post(seeing, FIELDS, path="/audio/transcriptions").json()
    assert other["text"] == body["text"]
    assert "logprobs" not in other


def test_text_and_subtitles(seeing: Served) -> None:
    """These are no JSON."""
    found = {kind: post(seeing, {**FIELDS, "response_format": kind}) for kind in ("text", "srt", "vtt")}
    for each in found.values():
        assert each.headers["content-type"].startswith("text/plain")
        check(each.text)
    assert found["srt"].text.startswith("1\n00:00:00,000 --> 00:00:0")
    assert found["vtt"].text.startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert found["text"].text.count("-->") == 0


def test_verbose_json(seeing: Served) -> None:
    """Segments with their times, and what Whisper tells of each."""
    body = post(
        seeing, {**FIELDS, "response_format": "verbose_json", "timestamp_granularities[]": "segment", "language": "en"}
    ).json()
    assert (body["task"], body["language"]) == ("transcribe", "en")
    assert body["duration"] == pytest.approx(2.0)
    first, second = body["segments"]
    assert "dog" in first["text"]
    assert "cat" in second["text"]
    assert (first["start"], first["end"], second["start"]) == pytest.approx((0, 0.8, 1), abs=0.01)
    assert first["avg_logprob"] < 0
    assert len(first["tokens"]) > 1


def test_openai_client(seeing: Served) -> None:
    """The package openai, whole and streamed: the parts of the text make the whole."""
    client = openai.OpenAI(base_url=f"{seeing.url}/v1", api_key="none")
    asked: Any = {
        "model": "seeing", "file": ("talk.wav", TALK), "temperature": 0, "prompt": "Animals.",
        "extra_body": {"instruction": ORDER, "window_seconds": 1}, "chunking_strategy": "auto",
    }  # fmt: skip
    whole = client.audio.transcriptions.create(**asked)
    check(whole.text)
    with client.audio.transcriptions.create(**asked, stream=True) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == whole.text
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert done.text == whole.text
    assert done.usage is not None
    verbose = client.audio.transcriptions.create(
        **asked, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert verbose.segments is not None
    assert verbose.segments[1].start == pytest.approx(1, abs=0.01)
    client.close()


def test_translations(seeing: Served) -> None:
    """The same form, and the text in English."""
    body = post(seeing, {**FIELDS, "response_format": "verbose_json"}, path="/v1/audio/translations").json()
    check(body["text"])
    assert (body["task"], body["language"]) == ("translate", "english")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "blind"}, "model"), ({"response_format": "xml"}, "response_format"),
        ({"temperature": "hot"}, "temperature"),
        ({"timestamp_granularities[]": "word", "response_format": "verbose_json"}, "timestamp_granularities"),
        ({"stream": "true", "response_format": "srt"}, "stream"), ({"window_seconds": "0"}, "window_seconds"),
        ({"include[]": "logprobs", "response_format": "srt"}, "include"), ({"languag": "en"}, "languag"),
        ({"language": "x" * 100}, "language"),
    ],
)  # fmt: skip
def test_what_is_refused(seeing: Served, fields: dict[str, str], param: str) -> None:
    """Other values, other names, and a model that does not hear: 400, with the field."""
    answer = post(seeing, {"model": "seeing", **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("file", [b"", b"no sound", TALK[:2000]])
def test_files_that_are_no_sounds(seeing: Served, file: bytes) -> None:
    """A 400 that says why; and a form without a file, another type of body, and a file that is too large."""
    answer = post(seeing, {"model": "seeing"}, file=file)
    assert answer.status_code == 400, answer.text


def test_other_bodies(seeing: Served) -> None:
    """A form without a file, a body that is no form, and a file that is too large."""
    path = f"{seeing.url}/v1/audio/transcriptions"
    assert (
        httpx.post(path, data={"model": "seeing"}, files={"other": b""}, timeout=60).json()["error"]["param"] == "file"
    )
    assert httpx.post(path, json={"model": "seeing"}, timeout=60).status_code == 415
    assert post(seeing, {"model": "seeing"}, file=bytes(26 * 2**20)).status_code == 413


def test_events(seeing: Served) -> None:
    """Without the package: each event is one line of JSON, and the last one has all of the text."""
    lines = post(seeing, {**FIELDS, "stream": "true"}).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert [event["type"] for event in events[-2:]] == ["transcript.text.delta", "transcript.text.done"]
    check(events[-1]["text"])


def test_silence(seeing: Served) -> None:
    """Nothing is said in it, in each format."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(40_000, np.float32), 16000, format="FLAC")
    assert post(seeing, {"model": "seeing"}, file=file.getvalue()).json()["text"] == ""
    assert post(seeing, {"model": "seeing", "response_format": "srt"}, file=file.getvalue()).text == ""
    events = post(seeing, {"model": "seeing", "stream": "true"}, file=file.getvalue()).text
    assert '"transcript.text.done"' in events


def test_many_long_sounds(seeing: Served) -> None:
    """A client's sounds wait until there is room for their samples: a small file may have an hour of silence."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16000 * 3500, np.int16), 16000, format="FLAC")
    before = sum(map(resident, seeing.worker_pids()))
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(post, seeing, {"model": "seeing"}, file=file.getvalue()) for _ in range(8)]
        peak = before
        while not all(each.done() for each in found):
            peak = max(peak, sum(map(resident, seeing.worker_pids())))
            time.sleep(0.01)
    assert [each.result().json()["text"] for each in found] == [""] * 8
    assert peak - before < 900e6

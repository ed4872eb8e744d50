"""OpenAI's speech, by a tiny random model that never finds the end of a sentence: 67 frames for a text of two words."""

from __future__ import annotations

import base64
import io
import json
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from helpers.serving import Served, events, serving, wait_until
from helpers.speech import FRAME, SAMPLE_RATE, write_speaker

N_FRAMES = 67
"""libmtmd's limit for a sentence of ten tokens: those of the text, and a full stop."""
BODY = {"model": "speaker", "input": "hello you", "voice": "alloy", "seed": 7}


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a model that speaks, and the same one with two voices."""
    folder = tmp_path_factory.mktemp("speaker")
    write_speaker(folder / "model.gguf", folder / "mmproj.gguf", eos_bias=-100.0)
    for name, step in (("anna", 20), ("bob", 50)):
        soundfile.write(folder / f"{name}.wav", np.sin(np.arange(SAMPLE_RATE) / step) / 3, SAMPLE_RATE)
    files = f'model = "{folder / "model.gguf"}"\nprojector = "{folder / "mmproj.gguf"}"\n'
    (folder / "settings.toml").write_text(
        f'[[models]]\nname = "speaker"\npreload = true\n{files}[[models]]\nname = "voices"\n{files}'
        f'[models.voices]\nanna = "{folder / "anna.wav"}"\nbob = "{folder / "bob.wav"}"\n'
    )
    with serving("--config", str(folder / "settings.toml")) as served:
        yield served


def post(served: Served, **fields: Any) -> httpx.Response:
    body = {name: value for name, value in {**BODY, **fields}.items() if value is not None}
    return httpx.post(f"{served.url}/v1/audio/speech", json=body, timeout=240)


def samples_of(data: bytes) -> list[int]:
    samples: list[int] = np.frombuffer(data, "<i2").tolist()
    return samples


def test_formats(speaker: Served) -> None:
    """A WAV file that tells its length, a stream of one, and its samples alone: the same sound."""
    answer = post(speaker)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "audio/wav"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with wave.open(io.BytesIO(answer.content)) as file:
        assert (file.getnframes(), file.getframerate()) == (N_FRAMES * FRAME, SAMPLE_RATE)
        sound = file.readframes(file.getnframes())
    pcm = post(speaker, response_format="pcm")
    assert pcm.headers["content-type"] == "audio/pcm"
    assert pcm.content == sound
    streamed = post(speaker, stream_format="audio")
    assert streamed.headers["content-type"] == "audio/wav"
    assert streamed.content[44:] == sound
    assert soundfile.read(io.BytesIO(streamed.content))[1] == SAMPLE_RATE
    assert post(speaker, seed=8).content != answer.content
    other = httpx.post(f"{speaker.url}/audio/speech", json=BODY, timeout=240)
    assert other.content == answer.content


def test_events(speaker: Served) -> None:
    """Server-sent events, whose parts make the file; the last one tells the tokens."""
    body = {**BODY, "stream_format": "sse", "response_format": "pcm"}
    with httpx.stream("POST", f"{speaker.url}/v1/audio/speech", json=body, timeout=240) as response:
        found = [json.loads(data) for data in events(response)]
    *parts, end = found
    assert {part["type"] for part in parts} == {"speech.audio.delta"}
    assert len(parts) == -(-N_FRAMES // 8)
    assert b"".join(base64.b64decode(part["audio"]) for part in parts) == post(speaker, response_format="pcm").content
    assert end["type"] == "speech.audio.done"
    assert end["usage"] == {"input_tokens": 9, "output_tokens": N_FRAMES, "total_tokens": 9 + N_FRAMES}


def test_openai_client(speaker: Served, tmp_path: Path) -> None:
    """The package openai, whole and streamed."""
    client = openai.OpenAI(base_url=f"{speaker.url}/v1", api_key="none")
    asked: Any = {"model": "speaker", "voice": "coral", "input": "hello you", "instructions": "Cheerful.",
                  "response_format": "wav", "extra_body": {"seed": 7}}  # fmt: skip
    client.audio.speech.create(**asked).write_to_file(tmp_path / "whole.wav")
    assert soundfile.info(str(tmp_path / "whole.wav")).frames == N_FRAMES * FRAME
    asked["response_format"] = "pcm"
    with client.audio.speech.with_streaming_response.create(**asked) as response:
        parts = list(response.iter_bytes())
    assert b"".join(parts) == (tmp_path / "whole.wav").read_bytes()[44:]


def test_voices(speaker: Served) -> None:
    """The names of the settings; any name is the model's own voice where there are none."""
    anna, bob = (post(speaker, model="voices", voice=name).content for name in ("anna", "bob"))
    assert anna != bob
    assert post(speaker, model="voices", voice={"id": "anna"}).content == anna
    own = post(speaker, model="voices", voice=None).content
    assert own == post(speaker, voice="nova").content == post(speaker, voice=None).content
    refused = post(speaker, model="voices", voice="carl")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "voice"
    assert "anna, bob" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"), ({"input": " \n"}, "input"), ({"input": "a" * 4097}, "input"), ({"input": 1}, "input"),
        ({"response_format": "mp3"}, "response_format"), ({"speed": 1.5}, "speed"), ({"voice": 3}, "voice"),
        ({"language": "de"}, "language"), ({"stream_format": "x"}, "stream_format"), ({"max_tokens": 3}, "max_tokens"),
        ({"voice": {"name": "x"}}, "voice.name"), ({"temperature": -1}, "temperature"), ({"input": "\u4e00"}, "input"),
    ],
)  # fmt: skip
def test_what_is_refused(speaker: Served, fields: dict[str, Any], param: str) -> None:
    """An error of the client, which names the field."""
    answer = post(speaker, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_what_the_model_does(speaker: Served, server: Served) -> None:
    """A model that speaks does nothing else, and others do not speak: the errors say so, and the models' facts."""
    answer = httpx.post(
        f"{speaker.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]}, timeout=60
    )
    assert answer.status_code == 400
    assert "this model speaks" in answer.json()["error"]["message"]
    refused = httpx.post(f"{server.url}/v1/audio/speech", json={"input": "hello"}, timeout=60)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "model"
    told = speaker.models()["speaker"]
    assert told["meta"]["speech"] is True


def test_clients_in_turn(speaker: Served) -> None:
    """Several clients at once: each has its own sound. One that goes ends its speech for the others."""
    alone = [post(speaker, seed=seed).content for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: post(speaker, seed=seed % 4).content, range(8)))
    assert together == alone + alone
    long = {**BODY, "input": "hello you. " * 300, "stream_format": "audio"}
    with httpx.stream("POST", f"{speaker.url}/v1/audio/speech", json=long, timeout=240) as response:
        next(response.iter_bytes())
    begin = time.monotonic()
    assert post(speaker, seed=1).content == alone[1]
    assert time.monotonic() - begin < 30
    wait_until(lambda: speaker.metric("offgrid_llama_requests_running") == 0)

"""Requests for speech, without a server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import offgrid_llama as og
from helpers.speech import write_speaker
from offgrid_llama.worker.frames import Answered, Generate
from offgrid_llama.worker.generation import Utterance
from offgrid_llama.worker.speaking import SpeechRequests


def test_the_end_of_a_worker(tmp_path: Path) -> None:
    """A speech that runs ends with its next frame: the worker does not wait for the rest of the text."""
    write_speaker(tmp_path / "model.gguf", tmp_path / "mmproj.gguf", eos_bias=-100.0)
    with og.Model(tmp_path / "model.gguf") as model, og.Projector(model, tmp_path / "mmproj.gguf", n_threads=1) as made:
        requests = SpeechRequests(og.Synthesizer(model, made, n_threads=1), {}, {})

        async def ended() -> Answered:
            frames: asyncio.Queue[Any] = asyncio.Queue()

            class Channel:
                send = staticmethod(frames.put_nowait)

            asked = Generate(1, Utterance(text="hello you. " * 60, as_wav=False), True, "a")
            answering = asyncio.create_task(requests.answer(asked, asked.what, Channel()))  # type: ignore[arg-type]
            await frames.get()
            requests.shutdown()
            await answering
            while not isinstance(frame := frames.get_nowait(), Answered):
                pass
            return frame

        spoken = asyncio.run(ended()).spoken
    assert spoken is not None
    assert 0.64 <= spoken.seconds < 60

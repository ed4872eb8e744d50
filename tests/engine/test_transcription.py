"""What is said in a sound: the model with a meaning hears 400 Hz as " dog", and 800 Hz as " cat"."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import offgrid_llama as og
from helpers.architectures import ARCHITECTURES, N_EMBD
from helpers.media_engines import idle_with_media
from helpers.projectors import MARKED, tone, write_meaning, write_random

ORDER = "Repeat this word once:"
WORDS = (" dog", " cat", " dog")


@pytest.fixture(scope="module")
def engine(smollm2: og.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Engine]:
    """An engine that hears, with two sequences."""
    path = tmp_path_factory.mktemp("projector") / "mmproj.gguf"
    write_meaning(path, smollm2)
    with og.Engine(smollm2, projector=path, n_ctx=2048, n_seq_max=2) as made:
        yield made
        idle_with_media(made)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three words, with a pause behind each, and a long one at the end."""
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    parts = [np.concatenate([0.5 * tone(word, 20), np.zeros(3200, np.float32)]) for word in WORDS]
    soundfile.write(path, np.concatenate([*parts, np.zeros(32000, np.float32)]), 16000)
    return path


def check(found: og.Transcript) -> None:
    assert [each.text.count(word.strip()) >= 1 for each, word in zip(found.segments, WORDS, strict=True)] == [True] * 3
    times = [(each.start, each.end) for each in found.segments]
    assert times == [pytest.approx((at, at + 0.8), abs=0.01) for at in range(3)]
    assert found.seconds == pytest.approx(5.0)
    assert found.text == " ".join(each.text for each in found.segments)
    assert found.srt().count("-->") == found.vtt().count("-->") == 3


def test_segments_and_text(engine: og.Engine, talk: Path) -> None:
    """Each word is in a segment with its time, the pause at the end in none; paths, bytes and Audios are taken."""
    with og.transcribe(engine, talk, instruction=ORDER, window_seconds=1, logprobs=0) as transcription:
        first = next(iter(transcription))
        found = transcription.result()
    check(found)
    assert found.segments[0] == first
    assert first.mean_logprob is not None
    assert first.mean_logprob < 0
    assert engine.model.vocab.detokenize(first.tokens).strip() == first.text
    assert transcription.result() == found
    for source in (talk.read_bytes(), og.Audio(talk)):
        assert og.transcribe(engine, source, instruction=ORDER, window_seconds=1).result().text == found.text


def test_many_windows_are_asked_for_at_once(engine: og.Engine, talk: Path) -> None:
    """As many as the engine has sequences; closing cancels what is under way, and keeps what was said."""
    transcription = og.transcribe(engine, talk, instruction=ORDER, window_seconds=1, ignore_eos=True, max_tokens=400)
    window = transcription.next_window()
    assert window is not None
    stats = engine.stats()
    assert stats.n_waiting + stats.n_running == 2
    window.reply.cancel()
    transcription.close()
    assert transcription.next_window() is None
    assert transcription.result().text == ""


def test_from_an_event_loop(engine: og.Engine, talk: Path) -> None:
    """``async for`` and ``await`` give the same; the loop goes on meanwhile."""

    async def main() -> tuple[list[og.Segment], og.Transcript, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        transcription = og.transcribe(engine, talk, instruction=ORDER, window_seconds=1)
        segments = [segment async for segment in transcription]
        found = await transcription
        ticking.cancel()
        return segments, found, ticks

    segments, found, ticks = asyncio.run(main())
    check(found)
    assert segments == list(found.segments)
    assert ticks > 10


def test_the_order(engine: og.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is told the language, what may help, or to translate; or only the instruction."""
    asked: list[str] = []
    chat = engine.chat

    def spy(messages: list[dict[str, list[object]]], **options: object) -> object:
        asked.append(str(messages[-1]["content"][0]))
        return chat(messages, max_tokens=1)

    monkeypatch.setattr(engine, "chat", spy)
    sound = og.Audio(tone(" dog", 20), sample_rate=16000)
    og.transcribe(engine, sound, language="Polish", context="Names: Łódź").result()
    og.transcribe(engine, sound, translate=True).result()
    og.transcribe(engine, sound, translate=True, instruction="Do that.").result()
    assert "Polish" in asked[0]
    assert "Łódź" in asked[0]
    assert "English" in asked[1]
    assert "Do that." in asked[2]
    assert "English" not in asked[2]


def test_silence_is_not_asked_about(engine: og.Engine) -> None:
    """A silent sound has no segments, and no text."""
    found = og.transcribe(engine, og.Audio(np.zeros(40_000), sample_rate=8000)).result()
    assert (found.text, found.segments, found.seconds) == ("", [], 5.0)


def test_windows_that_fit(smollm2: og.Model, tmp_path: Path) -> None:
    """A window is made shorter until half of a sequence is left; where a second does not fit, the error says what to do."""
    write_meaning(tmp_path / "mmproj.gguf", smollm2)
    sound = og.Audio(np.concatenate([0.5 * tone(" dog", 25)] * 10), sample_rate=16000)  # 250 tokens
    with og.Engine(smollm2, projector=tmp_path / "mmproj.gguf", n_ctx=256, n_seq_max=1) as engine:
        found = og.transcribe(engine, sound, instruction=ORDER, max_tokens=8).result()
        assert max(each.end - each.start for each in found.segments) <= 5
    ARCHITECTURES["llama"].write(tmp_path / "tiny.gguf", MARKED)
    write_random(tmp_path / "qwen2a.gguf", "qwen2a", N_EMBD)  # a second takes as many tokens as 30 seconds
    with (
        og.Engine(tmp_path / "tiny.gguf", projector=tmp_path / "qwen2a.gguf", n_ctx=512, n_seq_max=1) as engine,
        pytest.raises(og.ContextLengthError, match="make n_ctx larger"),
    ):
        og.transcribe(engine, sound)


def test_what_is_refused(engine: og.Engine, smollm2: og.Model, talk: Path, tmp_path: Path) -> None:
    """An engine that does not hear, other values, other files; and an error in a window, each time it is read."""
    with og.Engine(smollm2, n_ctx=256, n_seq_max=1) as deaf, pytest.raises(ValueError, match="no projector that hears"):
        og.transcribe(deaf, talk)
    with pytest.raises(ValueError, match="window_seconds"):
        og.transcribe(engine, talk, window_seconds=0.5)
    with pytest.raises(TypeError, match="engine must be an Engine"):
        og.transcribe(smollm2, talk)  # type: ignore[arg-type]
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(og.MediaError, match=r"text\.wav"):
        og.transcribe(engine, tmp_path / "text.wav")
    broken = og.transcribe(engine, talk, template="{{ raise_exception('no') }}")
    for _ in range(2):
        with pytest.raises(og.ChatTemplateError):
            broken.result()


def test_from_several_threads(engine: og.Engine, talk: Path) -> None:
    """Each transcription is its own."""
    found: list[og.Transcript] = []

    def work() -> None:
        found.append(og.transcribe(engine, talk, instruction=ORDER, window_seconds=1).result())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        check(each)
    assert len(found) == 3

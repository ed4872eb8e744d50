"""Synthesizer: text to speech, by tiny random models of both kinds that libmtmd knows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import offgrid_llama as og
from helpers.qwen_speech import write_qwen_speaker
from helpers.speech import FRAME, SAMPLE_RATE, write_speaker

LONG = "Hello you. " * 30
VOICE = og.Audio(np.sin(np.arange(2 * SAMPLE_RATE) / 20).astype(np.float32) / 3, sample_rate=SAMPLE_RATE)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Synthesizer]:
    """A model that speaks."""
    folder = tmp_path_factory.mktemp("speaker")
    write_speaker(folder / "model.gguf", folder / "mmproj.gguf")
    with (
        og.Model(folder / "model.gguf") as model,
        og.Projector(model, folder / "mmproj.gguf", n_threads=1) as projector,
        og.Synthesizer(model, projector, n_threads=1) as synthesizer,
    ):
        yield synthesizer


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Synthesizer]:
    """A model that never finds the end of a sentence."""
    folder = tmp_path_factory.mktemp("endless")
    write_speaker(folder / "model.gguf", folder / "mmproj.gguf", eos_bias=-100.0)
    with (
        og.Model(folder / "model.gguf") as model,
        og.Projector(model, folder / "mmproj.gguf", n_threads=1) as projector,
        og.Synthesizer(model, projector, n_threads=1) as synthesizer,
    ):
        yield synthesizer


def test_speech(speaker: og.Synthesizer) -> None:
    """Whole frames of sound, at the rate of the model, within the range of samples."""
    speech = speaker.speak("hello you", seed=5)
    before, samples = speech.finish_reason, speech.samples
    assert before is None
    assert samples.dtype == np.float32
    assert len(samples) == speech.n_frames * FRAME > 0
    assert np.abs(samples).max() <= 1
    assert samples.std() > 0.01
    assert speech.finish_reason == "stop"
    assert (speech.n_tokens, speech.sample_rate) == (9, SAMPLE_RATE)
    assert speech.seconds == pytest.approx(len(samples) / SAMPLE_RATE)


def test_seeds(speaker: og.Synthesizer) -> None:
    """The same seed gives the same sound, whatever was spoken before; another seed, text or voice gives another one."""
    first = speaker.speak("hello you", seed=5).samples
    assert np.array_equal(speaker.speak("hello you", seed=5).samples, first)
    others = [
        speaker.speak("hello you", seed=6).samples,
        speaker.speak("hello yes", seed=5).samples,
        speaker.speak("hello you", seed=5, voice=VOICE).samples,
    ]
    for other in others:
        n = min(len(first), len(other))
        assert not np.array_equal(first[:n], other[:n])
    assert np.array_equal(speaker.speak("hello you", seed=5).samples, first)
    assert speaker.speak("hello you").seed != speaker.speak("hello you").seed


def test_pieces(endless: og.Synthesizer) -> None:
    """Pieces come as they are made, and together they are the whole; a long text has several sentences."""
    whole = endless.speak("hello you", seed=1).samples
    speech = endless.speak("hello you", seed=1)
    pieces = iter(speech)
    first = next(pieces)
    assert len(first) == 8 * FRAME
    assert speech.finish_reason is None
    assert np.array_equal(np.concatenate([first, *pieces]), whole)
    long = endless.speak(LONG, seed=1).samples
    assert len(long) > 5 * len(whole)


def test_files(speaker: og.Synthesizer, tmp_path: Path) -> None:
    """A WAV file that other programs read, written whole."""
    speech = speaker.speak("hello you", seed=5)
    speech.save(tmp_path / "a.wav")
    read, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == SAMPLE_RATE
    assert np.abs(read - speech.samples).max() < 1e-4
    assert og.Audio(speech.wav()).seconds == pytest.approx(speech.seconds)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_ends(endless: og.Synthesizer) -> None:
    """A speech is cut at ``max_seconds`` and where the context is full, and ends where it is cancelled or closed."""
    cut = endless.speak("hello you", max_seconds=0.5)
    assert cut.samples.shape == (7 * FRAME,)
    assert cut.finish_reason == "length"
    with og.Synthesizer(endless.model, endless.projector, n_ctx=256, n_threads=1) as small:
        full = small.speak("a" * 50)  # libmtmd allows such a sentence 238 frames
        assert len(full.samples) == (256 - 52) * FRAME  # beside the text, its full stop and the mark of the beginning
        assert full.finish_reason == "length"
    speech = endless.speak("hello you")
    next(iter(speech))
    speech.cancel()
    assert len(speech.samples) == 9 * FRAME
    assert speech.finish_reason == "cancelled"
    closed = endless.speak("hello you")
    next(iter(closed))
    closed.close()
    assert len(closed.samples) == 8 * FRAME
    assert np.array_equal(endless.speak("hello you", seed=cut.seed, max_seconds=0.5).samples, cut.samples)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Synthesizer]:
    """A model that draws the first code of each frame, and then the others."""
    folder = tmp_path_factory.mktemp("qwen")
    write_qwen_speaker(folder / "model.gguf", folder / "mmproj.gguf")
    with (
        og.Model(folder / "model.gguf") as model,
        og.Projector(model, folder / "mmproj.gguf", n_threads=1) as projector,
        og.Synthesizer(model, projector, n_threads=1) as synthesizer,
    ):
        yield synthesizer


def test_models_that_draw_codes(qwen: og.Synthesizer) -> None:
    """Seeds, voices, languages by names and codes, and how codes are drawn: each makes another sound, and only that."""
    first = qwen.speak("hello you", seed=4)
    samples = first.samples
    assert first.finish_reason == "stop"
    assert len(samples) == first.n_frames * FRAME > 0
    assert np.abs(samples).max() <= 1
    assert np.array_equal(qwen.speak("hello you", seed=4).samples, samples)
    assert qwen.languages == ("english", "german")
    for language in ("english", "en", "EN"):
        assert np.array_equal(qwen.speak("hello you", seed=4, language=language).samples, samples)
    others = [
        qwen.speak("hello you", seed=5), qwen.speak("hello yes", seed=4), qwen.speak("hello you", seed=4, voice=VOICE),
        qwen.speak("hello you", seed=4, language="de"), qwen.speak("hello you", seed=4, temperature=0, max_seconds=1),
    ]  # fmt: skip
    for other in others:
        n = min(len(samples), len(other.samples))
        assert not np.array_equal(samples[:n], other.samples[:n])
    with pytest.raises(ValueError, match="language must be one of english, german, not 'klingon'"):
        qwen.speak("a", language="klingon")
    with pytest.raises(ValueError, match="language must be one of"):
        qwen.speak("a", language="fr")


def test_windows(qwen: og.Synthesizer) -> None:
    """Where sound is made of whole windows alone, pieces have these, and make the sound that comes at once."""
    for seed in range(100):  # a speech that is longer than a window: one in ten is
        speech = qwen.speak("hello you", seed=seed)
        pieces = list(speech)
        if len(pieces) > 1:
            break
    assert len(pieces[0]) == 72 * FRAME
    assert len(speech.samples) == speech.n_frames * FRAME


def test_one_at_a_time(endless: og.Synthesizer) -> None:
    """Threads take turns; one that would wait for itself gets an error."""
    first = endless.speak("hello you", seed=1)
    pieces = iter(first)
    next(pieces)
    with pytest.raises(RuntimeError, match="another text is spoken on this thread"):
        next(iter(endless.speak("hello yes")))
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(len(endless.speak("hello you", seed=1).samples)))
    waiting.start()
    waiting.join(0.05)
    assert not found
    n = 8 * FRAME + sum(map(len, pieces))
    waiting.join()
    assert found == [n]


def test_what_is_refused(speaker: og.Synthesizer, tiny: og.Model, tmp_path: Path) -> None:
    """Arguments that cannot be: errors that name them, before anything is computed."""
    for text in ("", "  \n"):
        with pytest.raises(ValueError, match="text must have something to say"):
            speaker.speak(text)
    with pytest.raises(UnicodeEncodeError, match="in text"):
        speaker.speak("\ud800")
    with pytest.raises(og.ContextLengthError, match=r"the text has 4\d+ tokens, and n_ctx is 1024") as caught:
        speaker.speak("a" * 4000)
    assert caught.value.n_ctx == 1024
    with pytest.raises(ValueError, match="language must be left out"):
        speaker.speak("a", language="en")
    with pytest.raises(TypeError, match="voice must be an Audio"):
        speaker.speak("a", voice=b"RIFF")  # type: ignore[arg-type]
    for name, value in (("seed", -1), ("max_seconds", -1.0), ("top_p", 2.0), ("temperature", -1.0)):
        with pytest.raises(ValueError, match=name):
            speaker.speak("a", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="projector is that of"):
        og.Synthesizer(tiny, speaker.projector)
    with pytest.raises(ValueError, match="n_ctx"):
        og.Synthesizer(speaker.model, speaker.projector, n_ctx=1)
    with pytest.raises(og.MediaError, match="hears no sound"):
        speaker.projector.tokenize([VOICE])
    short = og.Audio(np.zeros(1, np.float32), sample_rate=SAMPLE_RATE)
    with pytest.raises(og.MediaError, match="too short"):
        _ = speaker.speak("a", voice=short).samples


def test_projectors_that_do_not_speak(tmp_path: Path, tiny: og.Model) -> None:
    """A projector that sees makes no sound."""
    from helpers.projectors import write_patches

    write_patches(tmp_path / "mmproj.gguf", tiny.n_embd)
    with og.Projector(tiny, tmp_path / "mmproj.gguf") as projector:
        assert (projector.speech_rate, projector.takes_voice) == (None, False)
        with pytest.raises(og.MediaError, match="makes no sound"):
            og.Synthesizer(tiny, projector)


def test_closing(tmp_path: Path) -> None:
    """The end of the model, or of the projector, ends what speaks; it says so."""
    write_speaker(tmp_path / "model.gguf", tmp_path / "mmproj.gguf")
    model = og.Model(tmp_path / "model.gguf")
    projector = og.Projector(model, tmp_path / "mmproj.gguf")
    synthesizer = og.Synthesizer(model, projector)
    speech = synthesizer.speak("hello you")
    projector.close()
    with pytest.raises(og.ClosedError):
        _ = speech.samples
    model.close()
    synthesizer.close()
    with pytest.raises(og.ClosedError):
        synthesizer.speak("hello you")

"""Projector: what it tells, its tokens and embeddings, and a real model that says what it sees and hears."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import offgrid_llama as og
from helpers.projectors import (
    COLOURS,
    MARKED,
    PATCH,
    TONES,
    encoder_keys,
    picture,
    token_embedding,
    tone,
    write_meaning,
    write_patches,
)
from helpers.twin import N_EMBD, write_gguf, write_tiny_llama

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
ASK = (f"{SYSTEM}<|im_start|>user\nRepeat this word once:", "<|im_end|>\n<|im_start|>assistant\n")


def answer(projector: og.Projector, media: Sequence[og.Image | og.Audio], n: int = 8) -> str:
    """Return what the model says of pictures and sounds, greedily."""
    prompt = [ASK[0], *media, ASK[1]]
    options: dict[str, Any] = {"max_tokens": n, "temperature": 0, "parse_special": True}
    return og.generate(projector.model, prompt, projector=projector, **options).text


@pytest.mark.parametrize("word", COLOURS)
def test_a_model_says_what_it_sees(meaning: og.Projector, word: str) -> None:
    """Red is a dog, green a cat, blue a fish."""
    assert word.strip() in answer(meaning, [og.Image(picture(word))])


@pytest.mark.parametrize("word", TONES)
def test_a_model_says_what_it_hears(meaning: og.Projector, word: str) -> None:
    """400 Hz is a dog, 800 Hz a cat."""
    assert word.strip() in answer(meaning, [og.Audio(tone(word), sample_rate=16000)])


def test_what_a_projector_tells(meaning: og.Projector, smollm2: og.Model, meaning_path: Path) -> None:
    """What it can, and for which model."""
    assert (meaning.vision, meaning.audio, meaning.sample_rate, meaning.uses_mrope) == (True, True, 16000, False)
    assert meaning.types == {"vision": "gemma4uv", "audio": "gemma4ua"}
    assert (meaning.model, meaning.path, meaning.n_embd) == (smollm2, meaning_path, smollm2.n_embd)


def test_embeddings_are_the_words(meaning: og.Projector, smollm2: og.Model) -> None:
    """The encoder gives the embeddings that the projector was computed from: of a picture nearly, of a sound nearly."""
    for word in COLOURS:
        row = meaning.embed(og.Image(picture(word)))
        assert row.shape == (1, smollm2.n_embd)
        assert np.allclose(row[0], token_embedding(smollm2, word), atol=1e-2)
    for word in TONES:
        rows = meaning.embed(og.Audio(tone(word, 3), sample_rate=16000))
        assert rows.shape == (3, smollm2.n_embd)
        assert np.allclose(rows, token_embedding(smollm2, word), atol=1e-2)


def test_tokenize_is_text_marks_and_chunks(meaning: og.Projector) -> None:
    """Texts and marks next to each other are one list; a picture is one chunk with its content id."""
    image = og.Image(picture(" cat", 2 * PATCH, 3 * PATCH))
    with meaning.tokenize(["A", " B", image, "C"], add_special=False) as parts:
        first, chunk, last = parts
        vocab = meaning.model.vocab
        assert isinstance(first, list)
        assert isinstance(last, list)
        assert isinstance(chunk, og.MediaChunk)
        assert vocab.detokenize(first) == "A B<|image>"
        assert vocab.detokenize(last) == "<image|>C"
        assert (chunk.kind, chunk.id, chunk.n_tokens, chunk.n_positions) == ("image", image.id, 6, 6)
        assert not chunk.causal
        assert chunk.positions(10).tolist() == list(range(10, 16))
    assert chunk.closed


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (8, 4), (13, 9), (300, 5), (500, 400)])
def test_tokens_are_counted_without_decoding(meaning: og.Projector, height: int, width: int) -> None:
    """The count of a picture that was not decoded is the count of the real thing."""

    class NotDecoded(og.Image):
        @property
        def pixels(self) -> Any:
            raise AssertionError("decoded")

    array = np.zeros((height, width, 3), np.uint8)
    with meaning.tokenize([og.Image(array)], add_special=False) as parts:
        assert meaning.n_tokens(NotDecoded(array)) == parts.n_tokens


def test_a_sound_of_any_rate_and_form(meaning: og.Projector) -> None:
    """Files and arrays of other rates and channels are resampled to what the model hears."""
    t = np.arange(8820) / 44100
    left = np.sin(2 * np.pi * 400 * t).astype(np.float32)
    for sound in (left, np.stack([left, left], axis=1), (left * 32767).astype(np.int16)):
        audio = og.Audio(sound, sample_rate=44100)
        assert meaning.embed(audio).shape[0] == 5
        assert "dog" in answer(meaning, [audio])


def test_a_chunk_for_counting_is_not_encoded(meaning: og.Projector) -> None:
    """It says so, and nothing is computed of nothing."""
    with meaning.tokenize([og.Image(picture(" dog"))], decode=False) as parts:
        (chunk,) = parts.media
        with pytest.raises(og.MediaError, match="decode=False"):
            meaning.encode(chunk)


def test_strangers_write_no_marks(meaning: og.Projector) -> None:
    """The mark of libmtmd in a text is text: what stands for a picture is a part, never a word."""
    parts = meaning.tokenize(["look at <__media__>"], add_special=False)
    assert [type(part) for part in parts] == [list]


def test_one_projector_in_many_threads(meaning: og.Projector) -> None:
    """Several threads count, tokenize and encode at once, and each has its own result."""
    words = [*COLOURS] * 4
    rows: dict[int, Any] = {}

    def work(index: int) -> None:
        rows[index] = meaning.embed(og.Image(picture(words[index])))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(words))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, word in enumerate(words):
        assert np.array_equal(rows[index], meaning.embed(og.Image(picture(word))))


def test_ownership(smollm2_path: Path, meaning_path: Path) -> None:
    """A model closes its projectors, and a projector its chunks."""
    model = og.Model(smollm2_path)
    projector = og.Projector(model, meaning_path, image_min_tokens=1)
    (chunk,) = projector.tokenize([og.Image(picture(" dog"))]).media
    model.close()
    assert projector.closed
    assert chunk.closed
    with pytest.raises(og.ClosedError):
        projector.n_tokens(og.Image(picture(" dog")))


def test_one_sense_only(smollm2: og.Model, tmp_path: Path) -> None:
    """A projector of pictures hears nothing, and one of sound sees nothing."""
    sound, image = og.Audio(tone(" dog"), sample_rate=16000), og.Image(picture(" dog"))
    write_meaning(tmp_path / "sees.gguf", smollm2, audio=False)
    write_meaning(tmp_path / "hears.gguf", smollm2, vision=False)
    with og.Projector(smollm2, tmp_path / "sees.gguf") as sees, og.Projector(smollm2, tmp_path / "hears.gguf") as hears:
        assert (sees.vision, sees.audio, sees.sample_rate) == (True, False, None)
        assert (hears.vision, hears.audio, hears.sample_rate) == (False, True, 16000)
        with pytest.raises(og.MediaError, match="hears no sound"):
            sees.n_tokens(sound)
        with pytest.raises(og.MediaError, match="sees no pictures"):
            hears.n_tokens(image)


def test_damaged_media(meaning: og.Projector) -> None:
    """What its header did not tell is told when it is decoded."""
    audio = og.Audio(tone(" dog"), sample_rate=16000)
    audio.data = audio.data.replace(b"fmt ", b"fmt?")
    with pytest.raises(og.MediaError, match="damaged"):
        meaning.embed(audio)
    with pytest.raises(og.MediaError, match="too short"):
        meaning.embed(og.Audio(np.zeros(1, np.float32), sample_rate=16000))


@pytest.mark.parametrize("value", [3e38, np.nan])
def test_embeddings_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    """A projector whose weights overflow, or are no numbers: an error, and no NaN in the model."""
    write_tiny_llama(tmp_path / "model.gguf", more=MARKED)
    write_patches(tmp_path / "mmproj.gguf", N_EMBD)
    data = (tmp_path / "mmproj.gguf").read_bytes()
    weights = np.random.default_rng(5).standard_normal((N_EMBD, 4)).astype(np.float32)
    broken = np.full_like(weights, value)
    assert weights.tobytes() in data
    (tmp_path / "mmproj.gguf").write_bytes(data.replace(weights.tobytes(), broken.tobytes()))
    with (
        og.Model(tmp_path / "model.gguf") as model,
        og.Projector(model, tmp_path / "mmproj.gguf") as projector,
        pytest.raises(og.MediaError, match="makes no numbers of it"),
    ):
        projector.embed(og.Image(picture(" dog", 16, 16)))


def test_models_without_a_vocabulary(tiny: og.Model, tmp_path: Path) -> None:
    """There are no marks to put around a picture: an error, where libmtmd would end the process."""
    write_patches(tmp_path / "mmproj.gguf", tiny.n_embd)
    with (
        og.Projector(tiny, tmp_path / "mmproj.gguf") as projector,
        pytest.raises(og.MediaError, match="has no vocabulary"),
    ):
        projector.embed(og.Image(picture(" dog")))


def test_the_projector_beside_the_model(tmp_path: Path) -> None:
    """By "auto"."""
    write_tiny_llama(tmp_path / "model.gguf", more=MARKED)
    with og.Model(tmp_path / "model.gguf") as model:
        with pytest.raises(og.StoreError, match="no file beside"):
            og.Projector(model, "auto")
        write_patches(tmp_path / "mmproj-model.gguf", N_EMBD)
        with og.Projector(model, "auto") as projector:
            assert projector.path == tmp_path / "mmproj-model.gguf"
    with og.Engine(tmp_path / "model.gguf", projector="auto", n_ctx=64) as engine:
        assert engine.projector is not None


def test_image_tokens_have_bounds(smollm2: og.Model, meaning_path: Path) -> None:
    """image_min_tokens and image_max_tokens bound a picture's tokens, and are checked."""
    large = og.Image(np.zeros((400, 400, 3), np.uint8))
    with og.Projector(smollm2, meaning_path, image_min_tokens=4, image_max_tokens=9) as projector:
        marks = projector.n_tokens(og.Audio(tone(" dog"), sample_rate=16000)) - 1
        assert projector.n_tokens(large) - marks <= 9 + 2
        with projector.tokenize([og.Image(picture(" dog"))]) as parts:
            assert 4 <= parts.media[0].n_tokens <= 9
    with pytest.raises(ValueError, match="image_min_tokens must be 9 or less"):
        og.Projector(smollm2, meaning_path, image_min_tokens=10, image_max_tokens=9)
    with pytest.raises(ValueError, match="image_max_tokens"):
        og.Projector(smollm2, meaning_path, image_max_tokens=0)
    with pytest.raises(og.GGUFError, match="position_embd"):
        og.Projector(smollm2, meaning_path, image_max_tokens=5000)


def test_progress_and_cancel(smollm2: og.Model, meaning_path: Path) -> None:
    """Loading tells how far it is, and can be stopped; an exception of the callback comes out."""
    told: list[float] = []
    with og.Projector(smollm2, meaning_path, progress=told.append):
        assert told[0] == 0.0
        assert told == sorted(told) or told.count(0.0) == 2  # once for each encoder
    with pytest.raises(og.LoadCancelled, match="cancelled by progress"):
        og.Projector(smollm2, meaning_path, progress=lambda done: done == 0.0)

    def fail(_done: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        og.Projector(smollm2, meaning_path, progress=fail)


def test_files_that_are_no_projector(smollm2: og.Model, smollm2_path: Path, tmp_path: Path) -> None:
    """A missing file, another file, a model, and a projector of another model."""
    with pytest.raises(FileNotFoundError):
        og.Projector(smollm2, tmp_path / "none.gguf")
    with pytest.raises(og.GGUFError, match="no projector"):
        og.Projector(smollm2, smollm2_path)
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(og.GGUFError, match="no GGUF"):
        og.Projector(smollm2, tmp_path / "text.gguf")
    weights = {"mm.a.input_projection.weight": np.zeros((64, 640), np.float32)}
    keys = {"clip.has_audio_encoder": True, "clip.audio.num_mel_bins": 640} | encoder_keys("audio", "gemma4ua", 64, 1)
    write_gguf(tmp_path / "other.gguf", keys, weights)
    with pytest.raises(og.ModelLoadError, match="mismatch between text model"):
        og.Projector(smollm2, tmp_path / "other.gguf")
    with pytest.raises(TypeError, match="model must be"):
        og.Projector(smollm2_path, tmp_path / "other.gguf")  # type: ignore[arg-type]


def test_parts_of_other_kinds(meaning: og.Projector) -> None:
    """A part is a text, an Image or an Audio."""
    with pytest.raises(TypeError, match=r"parts\[1\]"):
        meaning.tokenize(["a", b"b"])  # type: ignore[list-item]
    assert meaning.tokenize([], add_special=False) == []


def test_a_name_of_the_store(smollm2: og.Model, meaning_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is no path here is the store's, as for a Model; for any other the error names the path."""
    monkeypatch.setattr("offgrid_llama.media.projector.resolve", {"hf:org/repo/mmproj.gguf": meaning_path}.__getitem__)
    with og.Projector(smollm2, "hf:org/repo/mmproj.gguf") as projector:
        assert projector.path == meaning_path
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"missing\.gguf"):
        og.Projector(smollm2, "missing.gguf")


@pytest.mark.parametrize("sample", [float("nan"), float("inf"), -1e5, 1e38])
def test_samples_that_are_none(meaning: og.Projector, sample: float) -> None:
    """A file of floats may have any, of which an encoder makes no numbers; those of the scale of integers are taken."""
    samples = np.zeros(1000, np.float32)
    samples[500] = sample
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="FLOAT")
    for use in (meaning.embed, meaning.n_tokens, meaning.samples):
        with pytest.raises(og.MediaError, match="samples that are no numbers, or beyond"):
            use(og.Audio(file.getvalue()))
    samples[500] = 32767
    assert np.isfinite(meaning.embed(og.Audio(samples, sample_rate=16000))).all()

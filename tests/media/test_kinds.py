"""Projectors of other kinds, tiny and random: tiles, M-RoPE and mel spectrograms, on a tiny model of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

import offgrid_llama as og
from helpers.architectures import ARCHITECTURES, N_EMBD
from helpers.projectors import KINDS, MARKED, write_random

RNG = np.random.default_rng(1)
PICTURE = og.Image(RNG.integers(0, 256, (50, 90, 3), dtype=np.uint8))
SOUND = og.Audio(0.1 * RNG.standard_normal(16000).astype(np.float32), sample_rate=16000)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, og.Model]]:
    """Tiny models with a vocabulary of letters and marks, by architecture."""
    folder = tmp_path_factory.mktemp("models")
    opened = {}
    for name in ("llama", "qwen2vl"):
        ARCHITECTURES[name].write(folder / f"{name}.gguf", MARKED)
        opened[name] = og.Model(folder / f"{name}.gguf")
    yield opened
    for model in opened.values():
        model.close()


@pytest.fixture(scope="module")
def projectors(models: dict[str, og.Model], tmp_path_factory: pytest.TempPathFactory) -> dict[str, og.Projector]:
    """A projector of each kind; their models close them."""
    folder = tmp_path_factory.mktemp("projectors")
    made = {}
    for kind in KINDS:
        write_random(folder / f"{kind}.gguf", kind, N_EMBD)
        made[kind] = og.Projector(models["qwen2vl" if kind == "qwen2vl_merger" else "llama"], folder / f"{kind}.gguf")
    return made


def media_of(kind: str) -> og.Image | og.Audio:
    """Return what a projector of this kind takes."""
    return PICTURE if KINDS[kind] == "vision" else SOUND


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_finite_and_the_same_again(projectors: dict[str, og.Projector], kind: str) -> None:
    """Each kind computes, the count of tokens is that of the embeddings, and a second time gives the same."""
    projector, media = projectors[kind], media_of(kind)
    first, second = projector.embed(media), projector.embed(media)
    with projector.tokenize([media], add_special=False) as parts:
        assert first.shape == (sum(chunk.n_tokens for chunk in parts.media), N_EMBD)
        assert projector.n_tokens(media) == parts.n_tokens
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)


def test_tiles(projectors: dict[str, og.Projector]) -> None:
    """A picture that is larger than a tile is several chunks with marks between, all with the picture's id, and causal."""
    with projectors["idefics3"].tokenize([PICTURE], add_special=False) as parts:
        assert len(parts.media) == 5  # 2 rows, 2 columns, and the whole
        assert {chunk.id for chunk in parts.media} == {PICTURE.id}
        assert all(chunk.causal and chunk.n_tokens == chunk.n_positions == 4 for chunk in parts.media)
        assert [isinstance(part, list) for part in parts] == [index % 2 == 0 for index in range(len(parts))]


def test_positions_of_mrope(projectors: dict[str, og.Projector]) -> None:
    """Time stands still, rows and columns go on, and the text after it begins where the longer side ends."""
    projector = projectors["qwen2vl_merger"]
    assert projector.uses_mrope
    with projector.tokenize([PICTURE]) as parts:
        (chunk,) = parts.media
        positions = chunk.positions(7)
    columns = int(positions[2].max()) - 6
    rows = int(positions[1].max()) - 6
    assert positions.shape == (4, chunk.n_tokens)
    assert rows * columns == chunk.n_tokens
    assert chunk.n_positions == max(rows, columns)
    assert positions[0].tolist() == [7] * chunk.n_tokens
    assert positions[1].tolist() == [7 + index // columns for index in range(chunk.n_tokens)]
    assert positions[2].tolist() == [7 + index % columns for index in range(chunk.n_tokens)]
    assert positions[3].tolist() == [0] * chunk.n_tokens


def test_a_context_decodes_mrope(projectors: dict[str, og.Projector]) -> None:
    """A picture between texts is decoded whole and in parts to the same logits, and where it stands matters."""
    projector = projectors["qwen2vl_merger"]
    rows = projector.embed(PICTURE)
    with projector.tokenize([PICTURE]) as parts:
        (chunk,) = parts.media
        at = {first: chunk.positions(first) for first in (3, 9)}

    def logits(first: int, parts: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        with og.Context(projector.model, n_ctx=512, flash_attn_type="disabled", type_k="f32", type_v="f32") as context:
            before = og.Batch(first)
            before.add_sequence([7] * first, logits="none")
            context.decode(before)
            positions = at[first]
            for part in np.array_split(np.arange(chunk.n_tokens), parts):
                context.decode(og.EmbeddingBatch(rows[part], positions[:, part]))
            after = og.Batch(1)
            after.add(9, first + chunk.n_positions, [0], logits=True)
            context.decode(after)
            return np.array(context.logits(0))

    whole = logits(3, 1)
    assert np.abs(whole - logits(3, 3)).max() < 1e-3
    assert np.abs(whole - logits(9, 1)).max() > 1e-2


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 700)])
@pytest.mark.parametrize("kind", [kind for kind, encoder in KINDS.items() if encoder == "vision"])
def test_odd_shapes(projectors: dict[str, og.Projector], kind: str, shape: tuple[int, int]) -> None:
    """A picture of an odd shape has embeddings, or an error that says what cannot be done: the process goes on."""
    image = og.Image(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))
    with suppress(og.MediaError):
        assert np.isfinite(projectors[kind].embed(image)).all()
    assert projectors[kind].embed(PICTURE).shape[1] == N_EMBD


@pytest.mark.parametrize("seconds", [0.001, 0.5, 29, 31, 61])
def test_sounds_of_any_length(projectors: dict[str, og.Projector], seconds: float) -> None:
    """A sound is cut into windows of 30 seconds, the last filled up with silence."""
    samples = np.zeros(int(16000 * seconds), np.float32)
    with projectors["qwen2a"].tokenize([og.Audio(samples, sample_rate=16000)]) as parts:
        assert len(parts.media) == int(seconds // 30) + 1
        assert len({chunk.n_tokens for chunk in parts.media}) == 1
        assert np.isfinite(projectors["qwen2a"].encode(parts.media[-1])).all()

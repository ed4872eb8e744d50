"""The rules on a projector's file: each refuses its hazard by itself, and lets through the values next to it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.projectors import encoder_keys
from helpers.twin import Value
from offgrid_llama.files.gguf_header import Overridden, Tensor
from offgrid_llama.files.projector_preflight import check

SEES: dict[str, Value] = {
    "general.architecture": "clip", "clip.has_vision_encoder": True, **encoder_keys("vision", "gemma4uv", 64, 4),
}  # fmt: skip
BLOCKS: dict[str, Value] = {"clip.vision.projector_type": "idefics3", "clip.vision.block_count": 2}


def tensor(name: str, kind: str = "f32", shape: tuple[int, ...] = (4,)) -> Tensor:
    """Return a row of a table of tensors."""
    return Tensor(name, kind, shape, 16, 0)


def checked(more: dict[str, Value], *tensors: Tensor, image_max_tokens: int | None = None) -> dict[str, str]:
    """Check a file that sees, with other keys and with further tensors."""
    tensors = (*tensors, tensor("v.patch_embd.weight", "f16"))
    return check(Path("mmproj.gguf"), Overridden({**SEES, **more}, {}), tensors, image_max_tokens)


@pytest.mark.parametrize(
    "more",
    [
        {}, BLOCKS, {"clip.vision.attention.head_count_kv": 1}, {"clip.vision.image_std": [0.5, 0.5, 0.5]},
        {"clip.vision.embedding_length": 2**16},
    ],
)  # fmt: skip
def test_sound_files(more: dict[str, Value]) -> None:
    """What a projector may be."""
    assert "vision" in checked(more, tensor("mm.0.weight", "q8_0"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"clip.has_vision_encoder": False}, "no projector"),
        ({"clip.has_vision_encoder": 1}, "no projector"),
        (BLOCKS | {"clip.vision.block_count": 0}, "block_count = 0"),
        (BLOCKS | {"clip.vision.block_count": 513}, "block_count = 513"),
        ({"clip.vision.attention.head_count": 0}, "head_count = 0"),
        ({"clip.vision.attention.head_count_kv": 0}, "head_count_kv = 0"),
        ({"clip.vision.embedding_length": 2**31}, "embedding_length"),
        ({"clip.vision.projection_dim": "64"}, "projection_dim"),
        ({"clip.vision.attention.layer_norm_epsilon": -1.0}, "epsilon"),
        ({"clip.vision.attention.layer_norm_epsilon": math.nan}, "epsilon"),
        ({"clip.vision.image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"clip.vision.image_mean": [0.5, math.inf, 0.5]}, "image_mean"),
    ],
)
def test_numbers_that_are_refused(more: dict[str, Value], said: str) -> None:
    """A number that libmtmd divides by, or makes room for, or computes nonsense with."""
    with pytest.raises(og.GGUFError, match=said):
        checked(more)


@pytest.mark.parametrize(
    "broken",
    [
        tensor("mm.0.weight", "i32"),
        tensor("mm.0.bias", "f16"),
        tensor("v.blk.0.ln1.weight", "bf16"),
        tensor("v.patch_embd.weight", "q4_0"),
        tensor("a.gen.wav.up.blk.0.gamma", "f16"),
        tensor("a.gen.wav.dac.post_snake.alpha", "f16"),
    ],
)
def test_types_that_are_refused(broken: Tensor) -> None:
    """Types on which a kernel aborts."""
    with pytest.raises(og.GGUFError, match=f"{broken.name} has the type {broken.type}"):
        checked({}, broken)


def test_a_table_of_positions_that_is_too_short() -> None:
    """Gemma 4 looks up a position for each token in a row."""
    table = tensor("v.position_embd.weight", shape=(4, 100, 2))
    with pytest.raises(og.GGUFError, match="1120 tokens"):
        checked({}, table)
    assert checked({}, table, image_max_tokens=100)
    with pytest.raises(og.GGUFError, match="101 tokens"):
        checked({}, table, image_max_tokens=101)


def test_codes_without_embedding() -> None:
    """Qwen3-TTS looks up an embedding for each code that it draws."""
    speaks: dict[str, Value] = {
        "clip.has_gen_audio_encoder": True, **encoder_keys("gen.audio", "qwen3tts_gen", 64, 4),
        "clip.gen.audio.block_count": 1,
    }  # fmt: skip
    head = tensor("a.gen.code.head.weight", shape=(16, 16, 3))
    assert checked(speaks, head, tensor("a.gen.code.embd.weight", shape=(64, 16, 3)))
    for shape in ((64, 15, 3), (64,)):
        with pytest.raises(og.GGUFError, match="no row for each of the codes"):
            checked(speaks, head, tensor("a.gen.code.embd.weight", shape=shape))


ATTENTION = [f"v.blk.0.attn_{part}.weight" for part in ("q", "k", "v", "out")]


@pytest.mark.parametrize(
    ("kind", "names", "missing"),
    [
        ("idefics3", ATTENTION, None),
        ("idefics3", ["v.blk.0.attn_out.weight", "v.blk.0.attn_qkv.weight"], None),
        ("idefics3", ATTENTION[1:], ATTENTION[0]),
        ("qwen2vl_merger", ["v.patch_embd.weight.1"], None),
        ("qwen2vl_merger", [], "v.patch_embd.weight.1"),
        ("qwen2vl_merger", ["v.patch_embd.weight.1", *ATTENTION], "v.blk.0.attn_q.bias"),
    ],
)
def test_tensors_that_are_missing(kind: str, names: list[str], missing: str | None) -> None:
    """Tensors that libmtmd reads without a look."""
    tensors = [tensor(name) for name in names]
    more: dict[str, Value] = {"clip.vision.projector_type": kind, "clip.vision.block_count": 1}
    if missing is None:
        assert checked(more, *tensors)
        return
    with pytest.raises(og.GGUFError, match=f"lacks the tensor {missing}"):
        checked(more, *tensors)


def test_sound_needs_its_positions() -> None:
    """And a picture its patches."""
    hears: dict[str, Value] = {"clip.has_audio_encoder": True, **encoder_keys("audio", "qwen2a", 64, 4)}
    hears["clip.audio.block_count"] = 1
    with pytest.raises(og.GGUFError, match=r"lacks the tensor a\.position_embd"):
        check(Path("mmproj.gguf"), Overridden(hears, {}), [])
    with pytest.raises(og.GGUFError, match=r"lacks the tensor v\.patch_embd"):
        check(Path("mmproj.gguf"), Overridden(SEES, {}), [])

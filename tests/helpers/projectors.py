"""Projectors: one with meaning, computed from a model's own token embeddings, and tiny random ones of other kinds.

``write_meaning`` has no transformer. For pictures (``gemma4uv``) the matrix of a patch averages each colour channel, and a
fourth channel is constant, so that the norm after it keeps the brightness; the projection is the least-squares map from
the codes of red, green and blue to the embeddings of " dog", " cat" and " fish". For sound (``gemma4ua``) the projection is
the sum of outer(embedding, sine): 400 Hz means " dog", 800 Hz " cat", whole periods in the 640 samples of a token.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import numpy as np

import offgrid_llama as og
from helpers.twin import LETTERS, N_VOCAB, Array, Value, Weights, write_gguf
from offgrid_llama.files.gguf import GGUF

PATCH = 4
"""Pixels of a patch's side; a picture of 4 x 4 is one token."""
FRAME = 640
"""Samples of a token of sound, at 16 kHz."""
COLOURS = {" dog": (255, 0, 0), " cat": (0, 255, 0), " fish": (0, 0, 255)}
TONES = {" dog": 400, " cat": 800}


def picture(word: str, height: int = PATCH, width: int = PATCH) -> Array:
    """Return the picture that means a word: uint8[height, width, 3] of one colour."""
    return np.full((height, width, 3), COLOURS[word], np.uint8)


def tone(word: str, n_tokens: int = 1) -> Array:
    """Return the sound that means a word: float32[640 * n_tokens], at 16 kHz."""
    t = np.arange(FRAME * n_tokens) / 16000
    return np.sin(2 * np.pi * TONES[word] * t).astype(np.float32)


def token_embedding(model: og.Model, word: str) -> Array:
    """Return the row of the embedding table that a word of one token has."""
    (token,) = model.vocab.tokenize(word, add_special=False)
    with GGUF(model.path) as file:
        tensor = next(tensor for tensor in file.tensors() if tensor.name == "token_embd.weight")
        row_bytes = tensor.n_bytes // tensor.shape[1]
        with file.opened() as opened:
            opened.seek(tensor.offset + token * row_bytes)
            return dequantized(opened.read(row_bytes), tensor.type, tensor.shape[0])


def dequantized(data: bytes, kind: str, n: int) -> Array:
    """Return a row of one of the types that a test model's embeddings have."""
    if kind == "f32":
        return np.frombuffer(data, np.float32)[:n]
    if kind == "f16":
        return np.frombuffer(data, np.float16)[:n].astype(np.float32)
    if kind == "q8_0":
        blocks = np.frombuffer(data, [("d", "<f2"), ("q", "i1", 32)])
        return np.asarray(blocks["d"].astype(np.float32)[:, None] * blocks["q"]).ravel()[:n]
    if kind == "q4_1":
        blocks = np.frombuffer(data, [("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
        values = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1)
        return (values * blocks["d"].astype(np.float32)[:, None] + blocks["m"].astype(np.float32)[:, None]).ravel()[:n]
    if kind == "q6_K":
        return _q6_k(data)[:n]
    raise NotImplementedError(kind)


def _q6_k(data: bytes) -> Array:
    blocks = np.frombuffer(data, [("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
    rows = []
    for block in blocks:
        values = np.empty(256, np.float32)
        for half in range(2):
            low, high = block["ql"][64 * half : 64 * half + 64], block["qh"][32 * half : 32 * half + 32]
            quarters = (low[:32] & 15, low[32:] & 15, low[:32] >> 4, low[32:] >> 4)
            for quarter, bits in enumerate(quarters):
                q = (bits | ((high >> (2 * quarter) & 3) << 4)).astype(np.int16) - 32
                scales = np.repeat(block["scales"][8 * half + 2 * quarter :][:2].astype(np.float32), 16)
                values[128 * half + 32 * quarter :][:32] = float(block["d"]) * scales * q
        rows.append(values)
    return np.concatenate(rows)


def write_meaning(path: Path, model: og.Model, *, vision: bool = True, audio: bool = True) -> None:
    """Write a projector for a model in whose vocabulary " dog", " cat" and " fish" are one token each."""
    keys: dict[str, Value] = {
        "general.architecture": "clip",
        "clip.has_vision_encoder": vision,
        "clip.has_audio_encoder": audio,
    }
    weights: Weights = {}
    if vision:
        keys |= _patch_keys(model.n_embd)
        weights |= _vision(model)
    if audio:
        keys |= encoder_keys("audio", "gemma4ua", model.n_embd, 1) | {"clip.audio.num_mel_bins": FRAME}
        weights["mm.a.input_projection.weight"] = _audio(model)
    write_gguf(path, keys, weights)


def _patch_keys(projection: int) -> dict[str, Value]:
    """Return the keys of an encoder of pictures without a transformer, whose chunks are not causal."""
    return encoder_keys("vision", "gemma4uv", projection, 4) | {
        "clip.vision.image_size": 4 * PATCH, "clip.vision.patch_size": PATCH, "clip.vision.projector.scale_factor": 1,
        "clip.vision.image_mean": [0.0] * 3, "clip.vision.image_std": [1.0] * 3,
    }  # fmt: skip


def encoder_keys(name: str, kind: str, projection: int, n_embd: int) -> dict[str, Value]:
    """Return the keys that libmtmd wants of every encoder."""
    return {
        f"clip.{name}.projector_type": kind, f"clip.{name}.embedding_length": n_embd, f"clip.{name}.feed_forward_length": 1,
        f"clip.{name}.block_count": 0, f"clip.{name}.attention.head_count": 1, f"clip.{name}.projection_dim": projection,
        f"clip.{name}.attention.layer_norm_epsilon": 1e-6,
    }  # fmt: skip


def write_patches(path: Path, projection: int, seed: int = 5) -> None:
    """Write the projector of pictures that ``write_meaning`` writes, but random: one whose chunks are not causal."""
    keys: dict[str, Value] = {"general.architecture": "clip", "clip.has_vision_encoder": True}
    weights = _patches(projection)
    weights["mm.input_projection.weight"] = (
        np.random.default_rng(seed).standard_normal((projection, 4)).astype(np.float32)
    )
    write_gguf(path, keys | _patch_keys(projection), weights)


def _patches(projection: int) -> Weights:
    """Return the weights that make four values of a patch, and a projection of zeros."""
    n_values = 3 * PATCH * PATCH
    average = np.zeros((4, n_values), np.float32)
    for channel in range(3):  # im2col lays out a patch by channels
        average[channel, channel * PATCH * PATCH : (channel + 1) * PATCH * PATCH] = 1 / PATCH**2
    bias = np.asarray([0, 0, 0, 1], np.float32)
    weights = {
        "v.patch_embd.weight": average,
        "v.patch_embd.bias": bias,
        "v.position_embd.weight": np.zeros((2, 4096, 4), np.float32),
        "mm.input_projection.weight": np.zeros((projection, 4), np.float32),
    }
    for index, width in ((1, n_values), (2, 4), (3, 4)):
        weights[f"v.patch_norm.{index}.weight"] = np.ones(width, np.float32)
        weights[f"v.patch_norm.{index}.bias"] = np.zeros(width, np.float32)
    return weights


def _vision(model: og.Model) -> Weights:
    weights = _patches(model.n_embd)
    average, bias = np.asarray(weights["v.patch_embd.weight"]), np.asarray(weights["v.patch_embd.bias"])
    codes = np.stack([_code(colour, average, bias) for colour in COLOURS.values()])
    targets = np.stack([token_embedding(model, word) for word in COLOURS])
    weights["mm.input_projection.weight"] = np.linalg.lstsq(codes, targets, rcond=None)[0].T.astype(np.float32).copy()
    return weights


def _code(colour: tuple[int, int, int], average: Array, bias: Array) -> Array:
    """Return what the encoder makes of a patch of one colour, before the projection."""
    patch = np.repeat(np.asarray(colour, np.float32) / 255, PATCH * PATCH)
    code = _norm(average @ _norm(patch) + bias)
    code = _norm(code)  # the norm after positions, which are 0
    return np.asarray(code / np.sqrt(np.mean(code**2) + 1e-6))


def _norm(values: Array) -> Array:
    return np.asarray((values - values.mean()) / np.sqrt(values.var() + 1e-5))


def _audio(model: og.Model) -> Array:
    """Return float32[n_embd, 640]: a sine of whole periods has the mean square 1/2, so the norm multiplies by sqrt(2)."""
    t = np.arange(FRAME) / 16000
    parts = [
        np.outer(token_embedding(model, word), np.sin(2 * np.pi * hertz * t)) * np.sqrt(2) / FRAME
        for word, hertz in TONES.items()
    ]
    return np.asarray(np.sum(parts, axis=0), np.float32)


_MARKS = [
    "\n\n", "\n", "<fake_token_around_image>", "<global-img>", *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)),
    "<|vision_start|>", "<|vision_end|>", "<|audio_bos|>", "<|audio_eos|>", "<|image>", "<image|>",
]  # fmt: skip
_TOKENS = ["<unk>", "<s>", "</s>", "<A>", "<B>", "<C>", "▁", *string.ascii_letters, "<", ">"][
    : N_VOCAB - len(_MARKS)
] + _MARKS
MARKED: dict[str, Value] = {
    **LETTERS, "tokenizer.ggml.tokens": _TOKENS,
    "tokenizer.ggml.token_type": [2, 3, 3, 3, 3, 3, *[1] * (N_VOCAB - 6 - len(_MARKS)), *[4] * len(_MARKS)],
}  # fmt: skip
"""A vocabulary of letters for tiny models, with the tokens that mark pictures and sound for ``KINDS``."""

KINDS = {"idefics3": "vision", "qwen2vl_merger": "vision", "qwen2a": "audio", "mlp": "vision"}
"""Tiny random projectors: one with tiles and causal chunks, one for M-RoPE, one that hears mel spectrograms, and one without
marks around a picture."""
WIDTH, N_FF, N_HEAD, N_MEL = 16, 24, 2, 8


def write_random(
    path: Path, kind: str, projection: int, seed: int = 5, *, side: int = 4 * PATCH, n_layer: int = 1, n_tiles: int = 2
) -> None:
    """Write a tiny projector with random weights.

    Args:
        path: the file.
        kind: one of KINDS.
        projection: values of its embeddings.
        seed: of the weights.
        side: pixels of a picture's side, or of a tile's.
        n_layer: layers of the transformer.
        n_tiles: how many tiles a picture's side has at most, in a kind with tiles.
    """
    encoder = KINDS[kind]
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> Array:
        return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[-1]), np.float32)

    keys: dict[str, Value] = {
        "general.architecture": "clip",
        f"clip.has_{encoder}_encoder": True,
        "clip.use_gelu": True,
    }
    keys |= encoder_keys(encoder, kind, projection, WIDTH) | {
        f"clip.{encoder}.feed_forward_length": N_FF, f"clip.{encoder}.block_count": n_layer,
        f"clip.{encoder}.attention.head_count": N_HEAD,
    }  # fmt: skip
    weights = _blocks("v" if encoder == "vision" else "a", n_layer, random)
    if encoder == "audio":
        keys["clip.audio.num_mel_bins"] = N_MEL
        weights |= {
            "a.conv1d.1.weight": random(WIDTH, N_MEL, 3).astype(np.float16), "a.conv1d.1.bias": random(WIDTH, 1),
            "a.conv1d.2.weight": random(WIDTH, WIDTH, 3).astype(np.float16), "a.conv1d.2.bias": random(WIDTH, 1),
            "a.position_embd.weight": random(1500, WIDTH), "mm.a.fc.weight": random(projection, WIDTH),
            "mm.a.fc.bias": random(projection),
        }  # fmt: skip
        weights.pop("a.blk.0.attn_k.bias")  # Whisper has none
    else:
        keys |= {
            "clip.vision.image_size": side, "clip.vision.patch_size": PATCH,
            "clip.vision.image_mean": [0.5] * 3, "clip.vision.image_std": [0.5] * 3,
        }  # fmt: skip
        weights["v.patch_embd.weight"] = random(WIDTH, 3, PATCH, PATCH)
        merged = 4 * WIDTH
        if kind == "idefics3":
            keys |= {"clip.vision.projector.scale_factor": 2, "clip.vision.preproc_image_size": n_tiles * side}
            weights |= {
                "v.patch_embd.bias": random(WIDTH), "v.position_embd.weight": random((side // PATCH) ** 2, WIDTH),
                "mm.model.fc.weight": random(projection, merged),
            }  # fmt: skip
        elif kind == "mlp":
            weights |= {
                "v.patch_embd.bias": random(WIDTH), "v.position_embd.weight": random((side // PATCH) ** 2, WIDTH),
                "mm.0.weight": random(WIDTH, WIDTH), "mm.0.bias": random(WIDTH),
                "mm.2.weight": random(projection, WIDTH), "mm.2.bias": random(projection),
            }  # fmt: skip
        else:
            weights |= {
                "v.patch_embd.weight.1": random(WIDTH, 3, PATCH, PATCH),
                "mm.0.weight": random(merged, merged), "mm.0.bias": random(merged),
                "mm.2.weight": random(projection, merged), "mm.2.bias": random(projection),
            }  # fmt: skip
    write_gguf(path, keys, weights)


def _blocks(prefix: str, n: int, random: Callable[..., Array]) -> Weights:
    """Return the weights of the layers of a transformer, and of the norm after the last."""
    all_weights: Weights = {}
    for index in range(n):
        weights: Weights = {}
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            weights |= {f"{name}.weight": random(WIDTH, WIDTH), f"{name}.bias": random(WIDTH)}
        for name in ("ln1", "ln2"):
            weights |= {f"{name}.weight": 1 + random(WIDTH), f"{name}.bias": random(WIDTH)}
        weights |= {"ffn_up.weight": random(N_FF, WIDTH), "ffn_up.bias": random(N_FF)}
        weights |= {"ffn_down.weight": random(WIDTH, N_FF), "ffn_down.bias": random(WIDTH)}
        all_weights |= {f"{prefix}.blk.{index}.{name}": array for name, array in weights.items()}
    return all_weights | {
        f"{prefix}.post_ln.weight": 1 + random(WIDTH), f"{prefix}.post_ln.bias": random(WIDTH),
    }  # fmt: skip

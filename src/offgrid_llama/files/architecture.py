"""Architectures: all that offgrid_llama knows of a model by the name of its architecture or of its pre-tokenizer.

Each fact was read off llama.cpp at the pinned commit, or tried with it. When the pin moves, read them again: they are all
in this file. ``tests/helpers/architectures.py`` has a tiny model of each kind to try them with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from offgrid_llama.native.enums import PoolingType

from .gguf_header import Metadata, Tensor

__all__ = [
    "ABORTS_ON_EMBEDDINGS", "ALWAYS_HAS_STREAMS", "CANNOT_BE_SAVED", "HAS_ENCODER", "LONG_RUNS", "MIXES_SEQUENCES",
    "SPACES_ONLY", "WKV7_HEAD_MULTIPLE", "LongRun", "Traits", "head_sizes", "keys_stay", "own_pooling", "wkv_head_multiple",
]  # fmt: skip

# Architectures ---------------------------------------------------------------------------------------------------------

CANNOT_BE_SAVED = frozenset({"gemma3n", "bitnet", "t5", "apertus", "step35"})
"""Saving a model of these aborts the process (``llama_model_saver_supports_arch``)."""

ABORTS_ON_EMBEDDINGS = frozenset({"deepseek4", "qwen4exp"})
"""With ``embeddings=True`` these abort: llama.cpp takes their embeddings for wider than they are."""

HAS_ENCODER = frozenset({"t5", "t5encoder"})
"""An encoder reads their prompts, which an Engine does not run: no text is generated with them."""

MIXES_SEQUENCES = frozenset({"plamo2"})
"""These compute one sequence of a batch with the state of another."""

ALWAYS_HAS_STREAMS = frozenset({"deepseek4"})
"""With ``kv_unified=True``, too, each sequence has some cells of its own, which are copied in the next decode."""

# To move a key llama.h turns it by RoPE, in every layer. That is wrong where a layer beside those with a sliding window has
# no RoPE (smollm3: every fourth; Baichuan 13B: none), and where the key was scaled by weights after RoPE.
_NO_ROPE_BESIDE_WINDOWS = frozenset(
    ["afmoe", "cohere2", "cohere2moe", "exaone-moe", "exaone4", "llama4", "maple", "muse-glimmer", "smallthinker"]
)
_KEYS_STAY = frozenset(["baichuan", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "maincoder", "smollm3"])

WKV7_HEAD_MULTIPLE = 64
"""Values that ggml computes at a time in RWKV-7: the widest vector of a processor."""


def keys_stay(architecture: str, has_windows: bool) -> bool:
    """Return whether llama.h moves keys of this architecture wrongly; ``has_windows`` tells of a sliding window."""
    return architecture in _KEYS_STAY or (has_windows and architecture in _NO_ROPE_BESIDE_WINDOWS)


def wkv_head_multiple(architecture: str) -> int:
    """Return the number that divides ``wkv.head_size`` of an RWKV model, or 0 for other architectures.

    llama.cpp writes that key into every file that it saves, as 0 where the architecture has none.
    """
    if "rwkv" not in architecture:
        return 0
    return WKV7_HEAD_MULTIPLE if architecture.endswith("rwkv7") else 1


# Hyperparameters by the name of the architecture, in the metadata of a loaded model -------------------------------------


def head_sizes(metadata: Mapping[str, str], default: int, *keys: str) -> set[int]:
    """Return the sizes of heads under the first of the keys that the metadata have, or else the default."""
    architecture = metadata.get("general.architecture", "")
    for key in keys:
        values = [metadata.get(f"{architecture}.{key}{suffix}", "") for suffix in ("", "_swa")]
        if sizes := {int(value) for value in values if value.isdigit()}:
            return sizes
    return {default}


def own_pooling(metadata: Mapping[str, str]) -> PoolingType:
    """Return how a model pools embeddings by itself."""
    architecture = metadata.get("general.architecture", "")
    own = int(metadata.get(f"{architecture}.pooling_type", PoolingType.NONE))
    return PoolingType(own) if own <= PoolingType.RANK else PoolingType.NONE  # -1, unspecified, is saved as a uint32


@dataclass(frozen=True)
class Traits:
    """Facts of one model that llama.h does not tell, from its files.

    Attributes:
        architecture: for instance ``llama``.
        n_kv_heads: heads with keys and values, of all layers together.
        has_learned_positions: whether positions have embeddings instead of RoPE.
        n_positions: the number of positions that have an embedding; 0: any position can be computed.
        n_scores: scores of the classifier; 0 without one.
    """

    architecture: str
    n_kv_heads: int
    has_learned_positions: bool
    n_positions: int
    n_scores: int

    @classmethod
    def of(cls, metadata: Metadata, tensors: Mapping[str, Tensor]) -> Traits:
        """Return the traits of a model: metadata of its first file, tensors of all."""
        return cls(
            architecture=metadata.architecture,
            n_kv_heads=sum(metadata.kv_heads()),
            has_learned_positions="position_embd.weight" in tensors,
            n_positions=_n_rows(tensors, "position_embd.weight"),
            n_scores=_n_rows(tensors, "cls.output.weight") or _n_rows(tensors, "cls.weight"),
        )


def _n_rows(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        return 0
    _, *rows = tensors[name].shape
    return rows[0] if rows else 1


# Pre-tokenizers, by ``tokenizer.ggml.pre`` ------------------------------------------------------------------------------

SPACES_ONLY = "whitespace"
"""Its words are spaces, too, and llama.cpp aborts on one that is longer than a space."""

_SPACE = rb"(?:[ \t\f\v]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)"


@dataclass(frozen=True)
class LongRun:
    """A stretch of text that a pre-tokenizer matches as one, and takes long for, or much stack.

    Attributes:
        pattern: matches it, in UTF-8.
        what: its name in errors, in the plural.
        max_bytes: the longest that is tokenized; None is MAX_RUN_BYTES of ``model/tokenize_limits.py``.
    """

    pattern: re.Pattern[bytes]
    what: str
    max_bytes: int | None


LONG_RUNS: dict[str, LongRun] = {
    "exaone-moe": LongRun(re.compile(rb"(?:[^0-9!-/:-@\[-`{-~\s]| (?! ))+"), "bytes without punctuation", None),
    "superbpe": LongRun(re.compile(rb"[0-9]+"), "digits in a row", 4096),
    # Its \s+$ looks for the end from each space, unless a letter or a sign after them takes the last one.
    "deepseek-llm": LongRun(re.compile(rb"(%s+(?!%s)[0-9\x80-\xff])|%s+" % ((_SPACE,) * 3)), "spaces in a row", 2048),
}
"""Pre-tokenizers that match other stretches than words and spaces, or take the square of their length."""

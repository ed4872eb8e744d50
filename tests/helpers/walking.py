"""Random texts of a grammar, without a model: each byte is one that the grammar allows."""

from __future__ import annotations

import random
from collections.abc import Sequence

from llguidance import LLMatcher, LLTokenizer

TOKENIZER = LLTokenizer("byte")
MAX_BYTES = 1500
SOME = b'ab1-2"<>{}[]\\ .:/@Z'


class NoControls:
    """Stands for a vocabulary without control tokens."""

    def control_tokens(self) -> dict[str, int]:
        """Return no tokens."""
        return {}

    def eog_tokens(self) -> frozenset[int]:
        """Return no tokens."""
        return frozenset()


def walk(source: str, seed: int, ends: Sequence[bytes] = ()) -> str | None:
    """Return a random text of a grammar in llguidance's form; None where it did not end by itself.

    Args:
        source: the grammar.
        seed: the same seed gives the same text.
        ends: texts that are tried wherever much is allowed, so that free text ends.

    Raises AssertionError for a grammar that is refused, or that leads to where nothing is allowed.
    """
    rng = random.Random(seed)
    matcher = LLMatcher(TOKENIZER, source, log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    text, aim = bytearray(), b""
    while len(text) < MAX_BYTES:
        if matcher.is_accepting() and rng.random() < 0.5:
            break
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if not allowed or matcher.is_stopped():
            assert matcher.is_accepting() or matcher.is_stopped(), f"nothing is allowed behind {bytes(text[-200:])!r}"
            break
        if not aim and len(allowed) > 30 and rng.random() < 0.35:
            aim = rng.choice([*ends, b'"'])
        if aim and aim[0] in allowed:
            byte, aim = aim[0], aim[1:]
        else:
            byte, aim = _any(allowed, rng, long=len(text) > 150), b""
        assert matcher.consume_token(byte)
        text.append(byte)
    else:
        return None
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def _any(allowed: list[int], rng: random.Random, *, long: bool) -> int:
    if len(allowed) > 30:
        return rng.choice([byte for byte in SOME if byte in allowed] or allowed)
    closing = [byte for byte in allowed if byte in b'"}])']
    return rng.choice(closing if closing and (long or rng.random() < 0.3) else allowed)

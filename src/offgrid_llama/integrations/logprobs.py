"""Logprobs of an answer in OpenAI's shape, which frameworks pass on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offgrid_llama.engine.prompt_logprobs import TokenLogprobs
    from offgrid_llama.model.vocab import Vocab

__all__ = ["told_logprobs"]


def told_logprobs(vocab: Vocab, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
    """Return ``{"content": [...]}``: each token's text, bytes and logprob, and the most probable ones; None for none."""
    if not logprobs:
        return None

    def told(token: int, logprob: float) -> dict[str, Any]:
        piece = vocab.piece(token, special=True)
        return {"token": piece.decode("utf-8", "replace"), "bytes": [*piece], "logprob": logprob}

    content = [
        {**told(token, own), "top_logprobs": [told(*each) for each in most]}
        for token, (own, most) in zip(tokens, logprobs, strict=False)
    ]
    return {"content": content}

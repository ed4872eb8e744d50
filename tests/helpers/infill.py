"""The tokens of the tiny llama for filling in the middle."""

from __future__ import annotations

from typing import Any

from .twin import LETTERS

PRE, SUF, MID = 3, 4, 5
FIM = {
    "tokenizer.ggml.fim_pre_token_id": PRE,
    "tokenizer.ggml.fim_suf_token_id": SUF,
    "tokenizer.ggml.fim_mid_token_id": MID,
}
REP, SEP, NEWLINE = 6, 59, 60
FILES: dict[str, Any] = {
    "tokenizer.ggml.tokens": [*LETTERS["tokenizer.ggml.tokens"][:NEWLINE], "\n"],  # type: ignore[index]
    "tokenizer.ggml.fim_rep_token_id": REP,
    "tokenizer.ggml.fim_sep_token_id": SEP,
}
"""The tokens between files, beside LETTERS: they stand for a space and "<" there, and a line break for ">"."""

"""Limits: the sizes of a context, and what its memory can do, for the plans that are made for it (data only)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Limits", "Trim"]


class Trim(Enum):
    """Which positions memory can remove, so that a sequence goes on from what is left."""

    ANY = "the end of a sequence, of any length"
    COMPUTED = (
        "the same, but of nothing that came from the shelf: of a sliding window only the last positions come back"
    )
    NOTHING = "whole sequences only: a recurrent state has no parts"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that plans keep to.

    Attributes:
        n_seq_max: number of sequences; their ids are 0 to ``n_seq_max - 1``.
        n_batch: most tokens of a step; more than ``n_seq_max``.
        n_ctx_seq: most tokens of a sequence.
        eog: the tokens that end a text.
        trim: what memory can remove.
        n_cells: positions that all sequences share (``kv_unified``); None where each has its own.
        n_guessed: most tokens that are guessed in a step; 0 where memory cannot remove wrong guesses.
        pad_limit: a sequence with this many tokens takes no padding; 0 where none does.
        n_outputs: most rows of a step with logits; at least ``n_seq_max``.
        piece: tokens of a prompt that are computed at once, each piece alone in its step, so that the same sequence is
            always computed by the same steps; 0 computes sequences together. No more than ``n_outputs``.
        has_chunks: whether prompts may have pictures and sounds.
        has_sections: whether positions behind a picture differ from the number of tokens before (M-RoPE).
    """

    n_seq_max: int
    n_batch: int
    n_ctx_seq: int
    eog: frozenset[int] = frozenset()
    trim: Trim = Trim.ANY
    n_cells: int | None = None
    n_guessed: int = 0
    pad_limit: int = 0
    n_outputs: int = 2**31 - 1
    piece: int = 0
    has_chunks: bool = False
    has_sections: bool = False

    def whole_pieces(self, n: int) -> int:
        """Return how many of ``n`` tokens are whole pieces; all, where prompts are not computed in pieces."""
        return n // self.piece * self.piece if self.piece else n

    def reusable(self, n_prompt: int) -> int:
        """Return with how many tokens of a sequence, which has a prompt of ``n_prompt``, another one may begin at most."""
        if not self.piece:
            return self.n_ctx_seq
        return self.whole_pieces(n_prompt) if self.trim is Trim.ANY else 0

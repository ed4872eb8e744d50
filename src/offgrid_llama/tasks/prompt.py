"""Prompts as ``generate`` decodes them: of tokens alone, or with pictures and sound between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from offgrid_llama.context.batch import Batch

if TYPE_CHECKING:
    from offgrid_llama.context.context import Context
    from offgrid_llama.media.projector import Projector, PromptPart

__all__ = ["MediaPrompt", "Prompt", "TokenPrompt"]


class Prompt(Protocol):
    """A prompt, counted and checked.

    Attributes:
        n_tokens: positions of the KV cache that it takes.
        end: the position of the token after it.
        n_together: the most tokens that must be in one micro-batch: those of a picture that is not causal.
    """

    @property
    def n_tokens(self) -> int: ...  # noqa: D102 - described by the class

    @property
    def end(self) -> int: ...  # noqa: D102

    @property
    def n_together(self) -> int: ...  # noqa: D102

    def decode(self, context: Context) -> None:
        """Compute it in sequence 0 of an empty context; the logits after it can be read then, as row -1."""


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt of tokens; see Prompt."""

    tokens: Sequence[int]
    n_together: int = 1

    @property
    def n_tokens(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    end = n_tokens

    def decode(self, context: Context) -> None:
        """Compute it; see Prompt."""
        decode_tokens(context, self.tokens, 0)


class MediaPrompt:
    """A prompt of texts, pictures and sound; see Prompt. They are counted when it is made, and encoded as it is decoded."""

    def __init__(self, projector: Projector, parts: Sequence[PromptPart], parse_special: bool) -> None:
        self._projector, self._parts, self._parse_special = projector, parts, parse_special
        self.end, self.n_together = 0, 1
        with projector.tokenize(parts, parse_special=parse_special, decode=False) as counted:
            self.n_tokens = counted.n_tokens
            for part in counted:
                if isinstance(part, list):
                    self.end += len(part)
                    continue
                self.end += part.n_positions
                if not part.causal:
                    self.n_together = max(self.n_together, part.n_tokens)

    def decode(self, context: Context) -> None:
        """Compute it; see Prompt."""
        first = 0
        with self._projector.tokenize(self._parts, parse_special=self._parse_special) as parts:
            for part in parts:
                if isinstance(part, list):
                    first = decode_tokens(context, part, first)
                else:
                    first = self._projector.decode(context, part, first)


def decode_tokens(context: Context, tokens: Sequence[int], first: int) -> int:
    """Compute tokens of sequence 0 from position ``first`` on, and return the position after them."""
    n_batch = context.n_batch
    batch = Batch(min(n_batch, len(tokens)))
    for begin in range(0, len(tokens), n_batch):
        batch.clear()
        batch.add_sequence(tokens[begin : begin + n_batch], pos=first + begin)
        context.decode(batch)
    return first + len(tokens)

"""MediaPrompt: the tokens of a prompt with pictures and sound, and what stands behind those that are no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from offgrid_llama.media.audio import Audio
from offgrid_llama.media.image import Image

from .planning.media_tokens import Chunk

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.media.projector import Media

__all__ = ["AnyPrompt", "MediaPrompt", "Part", "has_parts"]

AnyPrompt: TypeAlias = "str | bytes | Sequence[int | str | Image | Audio]"
"""A prompt as callers give it: a text (str, or bytes of UTF-8), token ids, or a list of both with pictures and sounds."""


@dataclass(frozen=True)
class Part:
    """A chunk of a picture or a sound.

    Attributes:
        media: the Image or Audio. index: which of its chunks.
        positions: of its rows, as ``MediaChunk.positions`` returns them.
    """

    media: Media
    index: int
    positions: npt.NDArray[np.int32]


@dataclass(frozen=True)
class MediaPrompt:
    """A prompt with pictures and sound.

    Attributes:
        tokens: its token ids, with media tokens for the rows of chunks.
        chunks: its chunks, in order.
        parts: what they are made of, by their heads and first positions.
    """

    tokens: list[int]
    chunks: list[Chunk]
    parts: dict[tuple[int, int], Part]

    def part(self, chunk: Chunk) -> Part:
        """Return what a chunk is made of."""
        return self.parts[chunk.head, chunk.first]


def has_parts(prompt: object) -> bool:
    """Return whether a prompt is a list of parts, not of token ids only."""
    if isinstance(prompt, (str, bytes, bytearray)) or not isinstance(prompt, Sequence):
        return False
    return any(isinstance(part, (str, Image, Audio)) for part in prompt)

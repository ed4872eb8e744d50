"""read_media_prompt(): the parts of a prompt as its tokens, and as the chunks that an encoder makes embeddings of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from offgrid_llama.errors import MediaError
from offgrid_llama.media.audio import Audio
from offgrid_llama.media.image import Image

from .media_prompt import MediaPrompt, Part
from .planning.media_tokens import Chunk, chunk_tokens

if TYPE_CHECKING:
    from offgrid_llama.media.chunk import MediaChunk
    from offgrid_llama.media.projector import PromptPart

    from .encoder import Encoder

__all__ = ["read_media_prompt"]


def read_media_prompt(
    encoder: Encoder, prompt: Sequence[PromptPart], *, parse_special: bool, n_batch: int
) -> MediaPrompt:
    """Return a prompt of texts, token ids, pictures and sound.

    A picture is decoded here, unless its embeddings are there: so a damaged one is refused before anything is computed.

    Args:
        encoder: the engine's.
        prompt: the parts, as ``Projector.tokenize`` takes them.
        parse_special: read control tokens in texts.
        n_batch: the most rows that can be computed together.

    Raises as ``Projector.tokenize`` does, and MediaError for a picture that does not fit into ``n_batch``.
    """
    media = {part.id: part for part in prompt if isinstance(part, (Image, Audio))}
    tokens: list[int] = []
    chunks: list[Chunk] = []
    parts: dict[tuple[int, int], Part] = {}
    first = 0
    with encoder.projector.tokenize(prompt, parse_special=parse_special, decode=False) as found:
        for part in found:
            if isinstance(part, list):
                tokens += part
                first += len(part)
                continue
            _check_fits(part, n_batch)
            head = encoder.head(part)
            source = media[part.id]
            if isinstance(source, Image) and not encoder.has(head):
                _ = source.pixels
            begin = len(tokens)
            tokens += chunk_tokens(head, part.n_tokens, part.n_positions)
            chunk = Chunk(begin, len(tokens), head, first, part.n_positions, part.causal)
            chunks.append(chunk)
            parts[head, first] = Part(source, part.index, part.positions(first))
            first += part.n_positions
    return MediaPrompt(tokens, chunks, parts)


def _check_fits(chunk: MediaChunk, n_batch: int) -> None:
    if not chunk.causal and chunk.n_tokens > n_batch:
        raise MediaError(
            f"{chunk.handle.name} takes {chunk.n_tokens} tokens that are computed together, and n_batch is {n_batch}: "
            f"make the engine with n_batch={chunk.n_tokens}, or the projector with a smaller image_max_tokens"
        )

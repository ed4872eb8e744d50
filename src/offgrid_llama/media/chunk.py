"""MediaChunk: what a picture or a sound is in a prompt; ``Projector.tokenize`` makes them."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from offgrid_llama._capi import ffi, lib
from offgrid_llama.native.check import text_of
from offgrid_llama.native.handle import Handle, Owner

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

__all__ = ["Chunks", "MediaChunk"]


class MediaChunk(Owner):
    """A picture, a tile of one, or a part of a sound, between the tokens of a prompt (``mtmd_input_chunk``).

    Its embeddings take the place of tokens: ``projector.encode(chunk)`` computes them. ``close()`` frees the prepared pixels
    or samples. Closing the projector closes it.

    Attributes:
        kind: "image" or "audio".
        id: the content id of the picture or the sound. index: which of its chunks.
        n_tokens: positions of the KV cache that it takes, the number of its embeddings.
        n_positions: by how much the positions after it go on: ``n_tokens``, and less for a picture in a model with M-RoPE.
        causal: whether its embeddings attend to those before only. Where it is False, all are decoded in one micro-batch,
            with ``context.set_causal_attn(False)``.
        without_data: whether it was made to count tokens, of a picture that was not decoded. It cannot be encoded.
    """

    _instead = "tokenize the picture or the sound again"

    def __init__(
        self, ptr: Any, projector: Handle, index: int, *, causal: bool, has_sections: bool, without_data: bool
    ) -> None:
        kinds: dict[int, Literal["image", "audio"]] = {
            lib.MTMD_INPUT_CHUNK_TYPE_IMAGE: "image", lib.MTMD_INPUT_CHUNK_TYPE_AUDIO: "audio",
        }  # fmt: skip
        self.kind = kinds[lib.mtmd_input_chunk_get_type(ptr)]
        self.id = text_of(lib.mtmd_input_chunk_get_id(ptr))
        self.index = index
        self.n_tokens: int = lib.mtmd_input_chunk_get_n_tokens(ptr)
        self.n_positions: int = lib.mtmd_input_chunk_get_n_pos(ptr)
        self.causal = causal
        self.without_data = without_data
        self._has_sections = has_sections
        self._own(Handle(f"MediaChunk {self.id[:8]}", ptr, lib.mtmd_input_chunk_free, projector))

    def positions(self, first: int) -> npt.NDArray[np.int32]:
        """Return the position of each embedding, as ``EmbeddingBatch`` takes them, where the chunk begins at ``first``.

        int32[n_tokens]; int32[4, n_tokens] for a model with M-RoPE: the time, the row, the column, and 0
        (``mtmd_helper_image_get_decoder_pos``).
        """
        import numpy as np

        in_order = np.arange(first, first + self.n_tokens, dtype=np.int32)
        if not self._has_sections:
            return in_order
        if self.kind == "audio":
            return np.tile(in_order, (4, 1))
        found = ffi.new("struct mtmd_decoder_pos[]", self.n_tokens)
        with self.handle as ptr:
            lib.mtmd_helper_image_get_decoder_pos(lib.mtmd_input_chunk_get_tokens_image(ptr), first, found)
        rows = np.frombuffer(ffi.buffer(found), np.uint32).reshape(self.n_tokens, 4).astype(np.int32)
        return np.ascontiguousarray(rows[:, [0, 2, 1, 3]].T)

    def __len__(self) -> int:
        return self.n_tokens

    def __repr__(self) -> str:
        return f"<MediaChunk: {self.kind} {self.id[:8]}, {self.n_tokens} tokens>"


class Chunks(list["list[int] | MediaChunk"]):
    """A prompt in parts: lists of token ids, and the chunks of pictures and sounds. A ``with`` block closes the chunks."""

    def add(self, tokens: list[int]) -> None:
        """Append token ids, to the list that is the last part, if it is one."""
        if not tokens:
            return
        if self and isinstance(self[-1], list):
            self[-1].extend(tokens)
        else:
            self.append([*tokens])

    @property
    def media(self) -> list[MediaChunk]:
        """The chunks alone."""
        return [part for part in self if isinstance(part, MediaChunk)]

    @property
    def n_tokens(self) -> int:
        """Positions of the KV cache that all parts take."""
        return sum(map(len, self))

    def close(self) -> None:
        """Close the chunks."""
        for chunk in self.media:
            chunk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

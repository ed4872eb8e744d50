"""Media tokens: where chunks begin in a text, and which position each of its tokens has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from offgrid_llama.engine.planning.media_tokens import (
    FIRST_MEDIA_TOKEN,
    MAX_HEADS,
    Chunk,
    MediaHeads,
    chunk_tokens,
    length_at,
    next_chunk,
    position_at,
    text_tokens,
    whole_chunks,
)

PIECES = st.lists(
    st.integers(0, 5) | st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted).map(tuple), max_size=8
)
"""Texts: tokens, and chunks by their positions and rows; those go on by no more positions than they have rows."""


def text_of(pieces: list[object]) -> tuple[list[int], list[int], list[int]]:
    """Return a text, and the length and the position behind each of its pieces."""
    heads = MediaHeads()
    text: list[int] = []
    lengths, positions = [0], [0]
    for piece in pieces:
        if isinstance(piece, tuple):
            n_positions, n = (1, 1) if piece[1] == 1 else piece
            text += chunk_tokens(heads.of(piece), n, n_positions)
            positions.append(positions[-1] + n_positions)
        else:
            text.append(int(str(piece)))
            positions.append(positions[-1] + 1)
        lengths.append(len(text))
    return text, lengths, positions


@given(PIECES)
def test_lengths_and_positions(pieces: list[object]) -> None:
    """Behind whole chunks each length has its position, and each position its length; a chunk that is cut counts as none."""
    text, lengths, positions = text_of(pieces)
    for length, position in zip(lengths, positions, strict=True):
        assert position_at(text, length) == position
        assert length_at(text, position) == length
        assert whole_chunks(text, length) == length
    for length in range(len(text) + 1):
        assert whole_chunks(text, length) == max(each for each in lengths if each <= length)
    for position in range(positions[-1] + 1):
        assert length_at(text, position) == max(
            length for length, each in zip(lengths, positions, strict=True) if each <= position
        )


def test_the_first_token_may_have_a_salt() -> None:
    """A salted text begins with another number, and its chunk is the same."""
    text = [-5, *chunk_tokens(MediaHeads().of("a"), 6, 3)[1:], 7]
    assert position_at(text, 7) == 4
    assert length_at(text, 3) == 6
    assert whole_chunks(text, 4) == 0


def test_heads() -> None:
    """The same content has the same head, another one another; one that is forgotten gets a new one."""
    heads = MediaHeads()
    first = heads.of(("id", 0))
    assert heads.of(("id", 0)) == first != heads.of(("id", 1))
    for other in range(MAX_HEADS):
        heads.of(other)
    assert heads.of(("id", 0)) not in (first, *range(FIRST_MEDIA_TOKEN))


def test_chunks_of_a_prompt() -> None:
    """The chunk of a token is found by its index, and text tokens are those of no chunk."""
    chunks = [Chunk(2, 5, 1, 2, 3, True), Chunk(5, 6, 2, 5, 1, True)]
    assert [next_chunk(chunks, at) for at in (0, 2, 4, 5, 6)] == [chunks[0], chunks[0], chunks[0], chunks[1], None]
    text = [1, 2, *chunk_tokens(2**26, 3, 3), *chunk_tokens(2**26 + 1, 1, 1), 9]
    assert text_tokens(text, chunks) == [1, 2, 9]
    assert text_tokens([1, 2], []) == [1, 2]

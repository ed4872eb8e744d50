"""Scorer: how probable given tokens are, read from rows of a step in the native call that decodes them.

``og_run_step`` of ``_capi/step.cpp`` verifies guesses: it samples from a row, and goes on to the next one while that is the
guess. Here each row has a mask that allows its given token alone, so that exactly this one is sampled, and reported with its
logprob.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.model.vocab import Vocab

__all__ = ["Scorer", "Scores"]

_MASK_BITS = 32


@dataclass(frozen=True, slots=True)
class Scores:
    """Logprobs of given tokens, one for each of ``n`` rows, from the model's own logits.

    Attributes:
        logprobs: float32[n]: of the given tokens.
        top: int32[n, n_top]: the most probable tokens of each row, in that order; -1 where there are no more.
        top_logprobs: float32[n, n_top]: of these.
        ranks: int32[n]: of the given tokens; 1 is the most probable one. Behind the ``n_top`` most probable ones, it is the
            number of all tokens that are at least as probable.
    """

    logprobs: npt.NDArray[np.float32]
    top: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float32]
    ranks: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Rows of one sequence, the tokens that are given for them, how many most probable ones are told, and their groups."""

    row: int
    tokens: Sequence[int]
    n_top: int
    sizes: list[int]


class Scorer:
    """The groups of a step that score tokens. ``add`` rows, ``fill`` the groups, run the step, ``read``, and ``clear``.

    Args:
        vocab: the model's.
        width: most tokens of a group.
    """

    def __init__(self, vocab: Vocab, width: int) -> None:
        self._width = width
        self._n_words = -(-vocab.n_tokens // _MASK_BITS)
        self._ends = frozenset(vocab.eog_tokens())
        self._wanted: list[_Wanted] = []
        self._masks, self._samplers = ffi.new("uint32_t[]", 0), ffi.new("og_fast_sampler[]", 0)
        self._top = self._top_logprobs = ffi.NULL

    @property
    def n_groups(self) -> int:
        """How many groups the rows take."""
        return sum(len(wanted.sizes) for wanted in self._wanted)

    def add(self, row: int, tokens: Sequence[int], n_top: int) -> None:
        """Score one given token for each of the rows from ``row`` on, and tell the ``n_top`` most probable ones."""
        self._wanted.append(_Wanted(row, tokens, n_top, list(self._split(tokens))))

    def _split(self, tokens: Sequence[int]) -> Iterator[int]:
        """Yield the sizes of groups: a group ends where it is full, and at a token that ends a text."""
        size = 0
        for token in tokens:
            size += 1
            if size == self._width or token in self._ends:
                yield size
                size = 0
        if size:
            yield size

    def fill(self, groups: Any, first: int) -> None:
        """Fill the groups of a step, ``og_group[]``, from the index ``first`` on."""
        n_words, tokens = self._n_words, list(chain.from_iterable(wanted.tokens for wanted in self._wanted))
        if len(self._masks) < len(tokens) * n_words:
            self._masks = ffi.new("uint32_t[]", len(tokens) * n_words)
            self._samplers = ffi.new("og_fast_sampler[]", len(tokens))
        for at, token in enumerate(tokens):
            self._masks[at * n_words + token // _MASK_BITS] = 1 << token % _MASK_BITS
        n_tops = sum(len(wanted.tokens) * wanted.n_top for wanted in self._wanted)
        self._top, self._top_logprobs = ffi.new("int32_t[]", n_tops), ffi.new("float[]", n_tops)
        index, at, top_at = first, 0, 0
        for wanted in self._wanted:
            row = wanted.row
            for size in wanted.sizes:
                sampler, group, mask = self._samplers[index - first], groups[index], self._masks + at * n_words
                sampler.repeat_penalty = sampler.top_p = sampler.typical_p = 1.0
                sampler.mask, sampler.n_top = mask, wanted.n_top
                sampler.top_tokens, sampler.top_logprobs = self._top + top_at, self._top_logprobs + top_at
                group.row, group.n_rows, group.max_tokens, group.n_tokens, group.status = row, size, size, 0, 0
                group.sampler, group.row_masks = ffi.addressof(self._samplers, index - first), mask + n_words
                group.chain = group.forced_tokens = ffi.NULL
                index, at, row, top_at = index + 1, at + size, row + size, top_at + size * wanted.n_top

    def read(self, groups: Any, first: int, logprobs: Any, logits: Callable[[int], Any]) -> list[Scores | None]:
        """Return what the step has told of each ``add``; None where the logits are no numbers, or exclude a given token.

        Args:
            groups, first: as they were filled.
            logprobs: of the step, ``float[]``.
            logits: returns a row of the step, float32[n_vocab].
        """
        import numpy as np

        own = np.frombuffer(ffi.buffer(logprobs), np.float32)
        top = np.frombuffer(ffi.buffer(self._top), np.int32)
        top_logprobs = np.frombuffer(ffi.buffer(self._top_logprobs), np.float32)
        found: list[Scores | None] = []
        index, at = first, 0
        for wanted in self._wanted:
            indexes = range(index, index + len(wanted.sizes))
            index, begin = indexes.stop, at
            at += len(wanted.tokens) * wanted.n_top
            if any(groups[i].n_tokens < size for i, size in zip(indexes, wanted.sizes, strict=True)):
                found.append(None)
                continue
            parts = [own[i * self._width :][:size] for i, size in zip(indexes, wanted.sizes, strict=True)]
            shape = (len(wanted.tokens), wanted.n_top)
            tops = top[begin:at].reshape(shape).copy()
            found.append(
                Scores(
                    np.concatenate(parts), tops, top_logprobs[begin:at].reshape(shape).copy(),
                    np.array([*_ranks(wanted, tops.tolist(), logits)], np.int32),
                )
            )  # fmt: skip
        return found

    def clear(self) -> None:
        """Empty it for new rows."""
        for at, token in enumerate(chain.from_iterable(wanted.tokens for wanted in self._wanted)):
            if at * self._n_words < len(self._masks):
                self._masks[at * self._n_words + token // _MASK_BITS] = 0
        self._wanted = []


def _ranks(wanted: _Wanted, tops: Sequence[list[int]], logits: Callable[[int], Any]) -> Iterator[int]:
    """Yield the rank of each given token. Its row is read only where the token is not among the most probable ones."""
    for row, (token, top) in enumerate(zip(wanted.tokens, tops, strict=True), wanted.row):
        if token in top:
            yield top.index(token) + 1
        else:
            values = logits(row)
            yield int((values >= values[token]).sum())

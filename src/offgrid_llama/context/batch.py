"""Batch: tokens with their positions and sequences, for one decode (``llama_batch``).

The arrays belong to Python, so a Batch needs no ``close()``. It records the rows that asked for logits. The Context reads no
others, for which llama.h aborts. An EmbeddingBatch has embeddings in place of tokens; what both have is in ``Rows``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from offgrid_llama._capi import ffi, lib
from offgrid_llama.native.bound import Bound
from offgrid_llama.native.check import INT32_MAX, number

if TYPE_CHECKING:
    from offgrid_llama.native.handle import Owner

__all__ = ["MAX_POS", "MAX_TOKENS", "Batch", "Rows"]

MAX_TOKENS = 2**24
"""Most tokens of a batch."""

MAX_POS = 2**30
"""Largest position: the sum of two positions is an int32."""


class Rows(Bound):
    """What a Context decodes: rows of tokens, or of embeddings. ``len(rows)`` is their number.

    Attributes:
        n_embd: width of the embeddings; 0 of tokens.
        n_sections: positions of each row: 1, and 4 of embeddings for a model with M-RoPE.
        c, readers, logit_rows, shared_rows, max_token, max_seq_id: internal, for Context and Step. The ``llama_batch *``;
            the contexts that decode it now, in a list because append and pop are atomic; the rows that asked for logits; the
            sequence ids of each row in several sequences; the largest token and sequence id.
    """

    n_embd = 0
    n_sections = 1
    c: Any

    def __init__(self) -> None:
        self._n = 0
        self.logit_rows: list[int] = []
        self.shared_rows: dict[int, Any] = {}
        self.max_token = self.max_seq_id = -1
        self.readers: list[Owner] = []

    def __len__(self) -> int:
        return self._n

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows that asked for logits, in order."""
        return tuple(self.logit_rows)

    def seq_ids(self) -> set[int]:
        """Return the sequences that rows belong to."""
        ids, counts = self.c.seq_id, self.c.n_seq_id
        return {ids[row][i] for row in range(len(self)) for i in range(counts[row])}


class Batch(Rows):
    """Room for ``n_tokens`` tokens. Fill it with ``add``, decode it, ``clear`` it, and use it again.

    A row is a token's index in the batch. ``len(batch)`` is the number of rows.

    Args:
        n_tokens: capacity in tokens. A Context decodes at most its ``n_batch`` of them at once.

    Attributes:
        capacity: ``n_tokens``.
    """

    _instead = "make another one, and add the same tokens"

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.capacity = number("n_tokens", n_tokens, 1, MAX_TOKENS)
        self._token = ffi.new("llama_token[]", self.capacity)
        self._pos = ffi.new("llama_pos[]", self.capacity)
        self._n_seq_id = ffi.new("int32_t[]", [1] * self.capacity)
        self._first_seq_id = ffi.new("llama_seq_id[]", self.capacity)
        self._seq_id = ffi.new("llama_seq_id *[]", [self._first_seq_id + i for i in range(self.capacity)])
        self._logits = ffi.new("int8_t[]", self.capacity)
        self.c = ffi.new(
            "struct llama_batch *",
            {
                "n_tokens": 0, "token": self._token, "embd": ffi.NULL, "pos": self._pos,
                "n_seq_id": self._n_seq_id, "seq_id": self._seq_id, "logits": self._logits,
            },
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Batch of {len(self)}/{self.capacity} tokens, {len(self.logit_rows)} with logits>"

    def add(self, token: int, pos: int, seq_ids: Sequence[int], logits: bool = False) -> int:
        """Append a token and return its row.

        Args:
            token: token id; the Context checks it against its vocabulary.
            pos: position in its sequences, from 0; a sequence's positions go on without a gap.
            seq_ids: the sequences it belongs to, at least one, each once. Several must have the same tokens before it:
                llama.cpp uses those of any one of them.
            logits: whether ``context.logits(row)`` and samplers can read this row after the decode.
        """
        row = self._n
        if (
            type(token) is int and type(pos) is int and type(seq_ids) is list and len(seq_ids) == 1
            and type(seq_id := seq_ids[0]) is int and 0 <= token <= INT32_MAX and 0 <= pos <= MAX_POS
            and 0 <= seq_id <= INT32_MAX and row < self.capacity and not self.readers
        ):  # fmt: skip
            # Each token of each stream is added here, between two steps: see Context._compute.
            # Ctrl-C may come between any two lines: so limits grow first, and the number of rows last.
            self.max_token = max(self.max_token, token)
            self.max_seq_id = max(self.max_seq_id, seq_id)
            lib.og_batch_put(self.c, row, token, pos, seq_id, bool(logits))
            self._n = row + 1
            if logits:
                self.logit_rows.append(row)
            return row
        return self._add(token, pos, seq_ids, bool(logits))

    def _add(self, token: int, pos: int, seq_ids: Sequence[int], logits: bool) -> int:
        """Do what ``add`` does, for other types and for several sequences, and raise for wrong arguments."""
        self._writable(1)
        row = self._n
        token = number("token", token, 0)
        pos = number("pos", pos, 0, MAX_POS)
        if isinstance(seq_ids, int):
            raise TypeError("seq_ids must be a sequence of ints, such as [0], not an int")
        ids = [number("seq_ids", seq, 0) for seq in seq_ids]
        if not ids:
            raise ValueError("seq_ids is empty: a token belongs to at least one sequence")
        if len(ids) > 1:
            if len(set(ids)) != len(ids):
                raise ValueError(f"seq_ids names a sequence twice: {ids}")
            self.shared_rows[row] = ffi.new("llama_seq_id[]", ids)  # _seq_id[row] points to them
            self._seq_id[row] = self.shared_rows[row]
            self._n_seq_id[row] = len(ids)
        self.max_token = max(self.max_token, token)
        self.max_seq_id = max(self.max_seq_id, *ids)
        lib.og_batch_put(self.c, row, token, pos, ids[0], logits)
        self._n = row + 1
        if logits:
            self.logit_rows.append(row)
        return row

    def add_sequence(
        self,
        tokens: Iterable[int],
        pos: int = 0,
        seq_id: int = 0,
        logits: Literal["none", "last", "all"] = "last",
    ) -> range:
        """Append the tokens of one sequence, the first at ``pos``, and return their rows; faster than ``add`` for each.

        ``logits`` selects the new rows that can be read after the decode.
        """
        tokens = [number(f"tokens[{i}]", token, 0) for i, token in enumerate(tokens)]
        seq_id = number("seq_id", seq_id, 0)
        pos = number("pos", pos, 0, MAX_POS - len(tokens))
        if logits not in ("none", "last", "all"):
            raise ValueError(f"logits must be 'none', 'last' or 'all', not {logits!r}")
        self._writable(len(tokens))
        begin, end = self._n, self._n + len(tokens)
        rows = range(begin, end)
        if not tokens:
            return rows
        self._token[begin:end] = tokens
        self._pos[begin:end] = range(pos, pos + len(tokens))
        self._first_seq_id[begin:end] = [seq_id] * len(tokens)
        wanted = {"none": range(0), "last": rows[-1:], "all": rows}[logits]
        self._logits[begin:end] = [int(row in wanted) for row in rows]
        self.logit_rows.extend(wanted)
        self.max_token = max(self.max_token, *tokens)
        self.max_seq_id = max(self.max_seq_id, seq_id)
        self._n = self.c.n_tokens = end
        return rows

    def fill(self, tokens: list[int], positions: list[int], seq_ids: list[int], rows: list[int]) -> None:
        """Replace all rows by these, with logits of ``rows``. Internal: only the largest token and sequence are checked."""
        self.clear()
        n = len(tokens)
        self._writable(n)
        self._token[0:n] = tokens
        self._pos[0:n] = positions
        self._first_seq_id[0:n] = seq_ids
        ffi.memmove(self._logits, bytes(n), n)
        for row in rows:
            self._logits[row] = 1
        self.logit_rows = rows
        self.max_token, self.max_seq_id = max(tokens), max(seq_ids)
        self._n = self.c.n_tokens = n

    def clear(self) -> None:
        """Empty the batch for new tokens."""
        if self.readers:
            self._writable(0)
        if self.shared_rows:
            for row in self.shared_rows:
                self._seq_id[row], self._n_seq_id[row] = self._first_seq_id + row, 1
            self.shared_rows.clear()
        self.logit_rows = []
        self.max_token = self.max_seq_id = -1
        self._n = self.c.n_tokens = 0

    def _writable(self, more: int) -> None:
        if self.readers:
            raise RuntimeError("the batch is being decoded on another thread")
        if len(self) + more > self.capacity:
            raise ValueError(
                f"the batch has room for {self.capacity - len(self)} of {more} more tokens: its n_tokens is {self.capacity}"
            )

"""Memory: the results of a context so far, by sequence and position (``llama_memory_t``). Borrowed from its Context.

Positions are half-open ranges [p0, p1); -1 means from the beginning, or to the end. Sequence ids are 0 to
``n_seq_max - 1``. They are checked here: llama.h aborts the process for any other.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import lib
from offgrid_llama.errors import ContextError
from offgrid_llama.files.architecture import ALWAYS_HAS_STREAMS, head_sizes, keys_stay
from offgrid_llama.model.params import ContextParams
from offgrid_llama.native.bound import Bound
from offgrid_llama.native.check import number, raise_caught, sequence
from offgrid_llama.native.enums import KV_TYPES

from .batch import MAX_POS, MAX_TOKENS

if TYPE_CHECKING:
    from offgrid_llama.model.model import Model
    from offgrid_llama.native.handle import Owner

    from .batch import Rows
    from .moves import Moves

__all__ = ["Memory", "forget_unfinished"]

_TURNED_VALUES = 64
"""Values of a quantized key that llama.cpp turns together."""


class Memory(Bound):
    """The KV cache or recurrent state of a Context. Get it as ``context.memory``; it is borrowed, and dies with it.

    Raises ContextError, in every method, for a context of an encoder-only model, which has no memory.

    Attributes:
        owner, handle, ptr, moves, has_state: internal. The Context, which lives as long as its memory is in use; the
            context's Handle; the ``llama_memory_t``, NULL without one; the moves that are left to the next decode; whether
            the memory has a state, which is made of all tokens so far and cannot go back.
    """

    _instead = "it belongs to its context"

    def __init__(self, owner: Owner, model: Model, params: ContextParams, moves: Moves) -> None:
        self.owner = owner
        self.handle = owner.handle
        self.moves = moves
        self._model = model
        self._params = params
        self.has_state = model.is_recurrent or model.is_hybrid
        # Whether each sequence has cells of its own, which the next decode copies.
        streams = not params.kv_unified or model.traits.architecture in ALWAYS_HAS_STREAMS
        self._has_streams = streams and not model.is_recurrent
        self._can_turn = _can_turn(model, params)
        with self.handle as ptr:
            self.ptr = lib.llama_get_memory(ptr)

    def __repr__(self) -> str:
        return f"<Memory of {self.handle.name}>"

    def clear(self, data: bool = True) -> None:
        """Forget every sequence; ``data`` also zeroes the buffers (``llama_memory_clear``)."""
        with self.handle:
            lib.llama_memory_clear(self.pointer(), bool(data))
            self.moves.forget_turns()
            raise_caught()

    def remove(self, seq_id: int, p0: int = -1, p1: int = -1) -> bool:
        """Forget [p0, p1) of a sequence, or of all for ``seq_id=-1`` (``llama_memory_seq_rm``).

        Returns False, and changes nothing, where the sequence could not go on as if the range had never been computed: a
        recurrent state has no parts, and a sliding window without ``swa_full``, or from a loaded state, has no positions far
        before its last token. Then forget the whole sequence and compute it again.
        """
        seqs = range(self._params.n_seq_max) if seq_id == -1 else [self._seq("seq_id", seq_id)]
        p0, p1 = self._range(p0, p1)
        with self.handle:
            memory = self.pointer()
            if 0 <= p1 <= max(p0, 0):
                return True
            if not all(self._can_forget(memory, seq, p0, p1) for seq in seqs):
                return False
            # One by one: of a recurrent memory llama.h removes no range from all sequences. And the end is -1, the only
            # one that deepseek4's compressed memory knows.
            lasts = [lib.llama_memory_seq_pos_max(memory, seq) for seq in seqs]
            done = [
                bool(lib.llama_memory_seq_rm(memory, seq, p0, -1 if p1 > last else p1))
                for seq, last in zip(seqs, lasts, strict=True)
            ]
            raise_caught()
            return all(done)

    def _can_forget(self, memory: Any, seq_id: int, p0: int, p1: int) -> bool:
        """Return whether a sequence without [p0, p1) goes on as if the range had never been computed."""
        model = self._model
        first = lib.llama_memory_seq_pos_min(memory, seq_id)
        last = lib.llama_memory_seq_pos_max(memory, seq_id)
        to_the_end = p1 == -1 or p1 > last
        if last < max(p0, 0) or (p0 <= 0 and to_the_end):
            return True  # nothing, or everything
        if self.has_state:
            return False
        if model.n_swa and to_the_end:  # also with swa_full: a loaded state has no more than the window
            return bool(first <= max(0, p0 - model.n_swa + 1))  # the next token is at p0 and sees as far as that
        return True

    def copy(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        """Replace [p0, p1) of sequence ``dst`` by that of ``src`` (``llama_memory_seq_cp``).

        Without ``kv_unified``, and of recurrent and hybrid models, only a whole sequence can be copied. Trim the copy with
        ``remove``.
        """
        src, dst = self._seq("src", src), self._seq("dst", dst)
        p0, p1 = self._range(p0, p1)
        if src != dst and (p0 > 0 or p1 != -1):
            if self.has_state:
                raise ValueError(
                    f"p0={p0}, p1={p1}: a recurrent state has no parts, only a whole sequence can be copied"
                )
            if not self._params.kv_unified:
                raise ValueError(
                    f"p0={p0}, p1={p1}: without kv_unified=True only a whole sequence can be copied. "
                    "Copy it whole, then memory.remove() the rest"
                )
        with self.handle:
            memory = self.pointer()
            if src != dst:
                # Otherwise dst keeps its own positions beside the copy, and attends to both.
                lib.llama_memory_seq_rm(memory, dst, p0, p1)
                lib.llama_memory_seq_cp(memory, src, dst, p0, p1)
                if self._has_streams:
                    self.moves.copy(src, dst)
                raise_caught()

    def keep(self, seq_id: int) -> None:
        """Forget every sequence but this one.

        Not by ``llama_memory_seq_keep``, which without ``kv_unified`` clears only the stream of the kept sequence.
        """
        seq_id = self._seq("seq_id", seq_id)
        with self.handle:
            memory = self.pointer()
            for other in range(self._params.n_seq_max):
                if other != seq_id:
                    lib.llama_memory_seq_rm(memory, other, -1, -1)
            raise_caught()

    def shift(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Add ``delta`` to the positions in [p0, p1); the next decode turns the keys (``llama_memory_seq_add``).

        Raises ContextError where ``can_shift`` is False.
        """
        seq_id = self._seq("seq_id", seq_id)
        p0, p1 = self._range(p0, p1)
        with self.handle:
            memory = self._shiftable()
            last = lib.llama_memory_seq_pos_max(memory, seq_id)
            number("delta", delta, -MAX_POS, MAX_POS - max(last, 0))
            lib.llama_memory_seq_add(memory, seq_id, p0, p1, delta)
            self.moves.turn()
            raise_caught()

    def divide(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        """Divide the positions in [p0, p1) by ``d``, at least 1, rounding down; the next decode turns the keys.

        By ``llama_memory_seq_add`` for each position: the pinned ``llama_memory_seq_div`` turns keys the wrong way.

        Raises ContextError where ``can_shift`` is False, ValueError for more than 2**24 positions.
        """
        seq_id = self._seq("seq_id", seq_id)
        p0, p1 = self._range(p0, p1)
        d = number("d", d, 1)
        with self.handle:
            memory = self._shiftable()
            begin = max(p0, lib.llama_memory_seq_pos_min(memory, seq_id), 1)  # 0 does not move
            end = lib.llama_memory_seq_pos_max(memory, seq_id) + 1
            end = end if p1 == -1 else min(p1, end)
            number("p1 - p0", max(end - begin, 0), 0, MAX_TOKENS)
            self.moves.turn()
            if d > 1:
                for pos in range(begin, end):  # upwards: a moved position is never moved again
                    lib.llama_memory_seq_add(memory, seq_id, pos, pos + 1, pos // d - pos)
            raise_caught()

    def positions(self, seq_id: int) -> range:
        """Return the positions of a sequence; none for an unused one (``llama_memory_seq_pos_min``, ``_max``).

        A sliding window forgets the oldest ones, so the range need not begin at 0. A recurrent state has its last one only.
        """
        seq_id = self._seq("seq_id", seq_id)
        with self.handle:
            memory = self.pointer()
            first = lib.llama_memory_seq_pos_min(memory, seq_id)
            last = lib.llama_memory_seq_pos_max(memory, seq_id)
        return range(first, last + 1) if last >= 0 else range(0)

    @property
    def can_trim(self) -> bool:
        """Whether the end of a sequence can be removed.

        False for a recurrent state, which has no parts, and for a sliding window without ``swa_full``, which keeps only the
        last positions.
        """
        return not self.has_state and (not self._model.n_swa or self._params.swa_full)

    @property
    def can_shift(self) -> bool:
        """Whether ``shift`` and ``divide`` work for this model and ``type_k`` (``llama_memory_can_shift``).

        False for recurrent and hybrid models: their state has no parts to move, and a copy shares it until its next decode,
        so that llama.h would move both. False also for architectures whose keys llama.h turns wrongly: those with learned
        positions, with layers without RoPE, or with keys that are scaled after RoPE. Quantized keys can be moved where
        heads have a multiple of 64 values, and RoPE turns all of them.
        """
        with self.handle:
            return self._can_shift(self.pointer())

    def _can_shift(self, memory: Any) -> bool:
        model, traits = self._model, self._model.traits
        stay = self.has_state or traits.has_learned_positions or keys_stay(traits.architecture, model.n_swa > 0)
        return self._can_turn and not stay and bool(lib.llama_memory_can_shift(memory))

    def pointer(self) -> Any:
        """Return ``ptr``, or raise ContextError for a context without memory. Internal: the handle is in use."""
        if not self.ptr:
            raise ContextError(f"{self.handle.name} has no memory: its model has no decoder")
        return self.ptr

    def _shiftable(self) -> Any:
        memory = self.pointer()
        if not self._can_shift(memory):
            raise ContextError(f"{self.handle.name} cannot move positions: can_shift is False")
        return memory

    def _seq(self, name: str, seq_id: int) -> int:
        return sequence(name, seq_id, self._params.n_seq_max)

    @staticmethod
    def _range(p0: int, p1: int) -> tuple[int, int]:
        return number("p0", p0, -1), number("p1", p1, -1)


def forget_unfinished(memory: Memory, batch: Rows) -> None:
    """Forget the rows that a failed decode of ``batch`` left unfinished in memory. The handle is in use."""
    if not memory.ptr:
        return
    if memory.has_state:
        seqs = batch.seq_ids()
        if len(seqs) > 1:  # then the cells of other sequences have moved as well
            lib.llama_memory_clear(memory.ptr, False)
        else:
            lib.llama_memory_seq_rm(memory.ptr, min(seqs), -1, -1)
        return
    for row, seq_ids in batch.shared_rows.items():  # of a row in several sequences llama.h forgets it in one
        pos = batch.c.pos[row]
        if pos > min(lib.llama_memory_seq_pos_max(memory.ptr, seq_id) for seq_id in seq_ids):
            for seq_id in seq_ids:
                lib.llama_memory_seq_rm(memory.ptr, seq_id, pos, -1)


def _can_turn(model: Model, params: ContextParams) -> bool:
    """Return whether llama.cpp can turn keys of this type: quantized ones only whole, in heads of a multiple of 64 values.

    Otherwise it turns the wrong values, or follows a null pointer (``llama_kv_cache::build_rope_shift``).
    """
    if model.is_recurrent or not lib.ggml_is_quantized(KV_TYPES[params.type_k]):
        return True
    default = model.n_embd // max(model.n_head, 1)
    heads = head_sizes(model.metadata, default, "attention.key_length")
    turned = head_sizes(model.metadata, default, "rope.dimension_count", "attention.key_length")
    plain = os.environ.get("LLAMA_ATTN_ROT_DISABLE", "0") == "0"
    return plain and len(heads) == 1 and turned == heads and not any(size % _TURNED_VALUES for size in heads)

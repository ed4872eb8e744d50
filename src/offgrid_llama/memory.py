"""Memory: what a context has computed, by sequence and position (``llama_memory_t``). Borrowed from its Context.

Positions are half-open ranges [p0, p1); -1 means from the beginning, or to the end. Sequence ids are 0 to
``n_seq_max - 1``; llama.h aborts the process for any other, so they are checked here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ._capi import lib
from ._check import number, raise_caught, sequence
from .batch import MAX_POS, MAX_TOKENS
from .errors import ContextError, StateError
from .params import KV_TYPES, ContextParams

if TYPE_CHECKING:
    from .context import Context
    from .model import Model

__all__ = ["COPYING", "TURNING", "Memory", "head_sizes"]

_BLOCK = 64  # values of a quantized key that are turned together

TURNING, COPYING = 1, 2  # what the next decode is to do: turn keys to new positions, copy the data of streams

# To move a key llama.h turns it by RoPE, in every layer. That is wrong where a layer beside those with a sliding window has
# no RoPE (smollm3: every fourth; Baichuan 13B: none), and where the key was scaled by weights after RoPE.
_NO_ROPE_BESIDE_WINDOWS = frozenset(
    ["afmoe", "cohere2", "cohere2moe", "exaone-moe", "exaone4", "llama4", "maple", "muse-glimmer", "smallthinker"]
)
_KEYS_THAT_STAY = frozenset(["baichuan", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "maincoder", "smollm3"])


class Memory:
    """The KV cache or recurrent state of a Context. Get it as ``context.memory``; it is borrowed, and dies with it.

    Raises ContextError, in every method, for a context of an encoder-only model, which has no memory.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handle = context._handle
        self._can_turn = _can_turn(context.model, context.params)
        with self._handle as ptr:
            self._ptr = lib.llama_get_memory(ptr)

    def __repr__(self) -> str:
        return f"<Memory of {self._handle.name}>"

    def clear(self, data: bool = True) -> None:
        """Forget every sequence; ``data`` also zeroes the buffers (``llama_memory_clear``)."""
        with self._handle:
            lib.llama_memory_clear(self._there(), bool(data))
            self._context._moving &= COPYING  # llama.h still copies: the data of streams that are empty now
            raise_caught()

    def remove(self, seq_id: int, p0: int = -1, p1: int = -1) -> bool:
        """Forget [p0, p1) of a sequence, or of all for ``seq_id=-1`` (``llama_memory_seq_rm``).

        Returns False, and changes nothing, where the sequence could not go on as if the range had never been: a recurrent
        state has no parts, and a sliding window without ``swa_full``, or from a loaded state, has nothing that is far behind
        its last token. Then forget the whole sequence and compute it again.
        """
        seqs = range(self._context.n_seq_max) if seq_id == -1 else [self._seq("seq_id", seq_id)]
        p0, p1 = self._range(p0, p1)
        with self._handle:
            memory = self._there()
            if 0 <= p1 <= max(p0, 0):
                return True
            if not all(self._can_forget(memory, seq, p0, p1) for seq in seqs):
                return False
            # One by one: of a recurrent memory llama.h removes no range from all sequences. And to the end is -1, as
            # deepseek4's compressed memory knows no other.
            lasts = [lib.llama_memory_seq_pos_max(memory, seq) for seq in seqs]
            done = [
                bool(lib.llama_memory_seq_rm(memory, seq, p0, -1 if p1 > last else p1))
                for seq, last in zip(seqs, lasts, strict=True)
            ]
            raise_caught()
            return all(done)

    def _can_forget(self, memory: object, seq_id: int, p0: int, p1: int) -> bool:
        """Return whether what follows without [p0, p1) is what would follow had it never been computed."""
        model = self._context.model
        first = lib.llama_memory_seq_pos_min(memory, seq_id)
        last = lib.llama_memory_seq_pos_max(memory, seq_id)
        to_the_end = p1 == -1 or p1 > last
        if last < max(p0, 0) or (p0 <= 0 and to_the_end):
            return True  # nothing, or everything
        if self._has_state():
            return False
        if model.n_swa and to_the_end:  # also with swa_full: a state that was loaded has no more than the window
            return bool(first <= max(0, p0 - model.n_swa + 1))  # the next token is at p0 and sees as far as that
        return True

    def copy(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        """Let sequence ``dst`` have what ``src`` has in [p0, p1), instead of what it had there (``llama_memory_seq_cp``).

        Without ``kv_unified`` only the whole sequence can be copied; trim the copy with ``remove``. Of a recurrent or hybrid
        model it is always the whole.
        """
        src, dst = self._seq("src", src), self._seq("dst", dst)
        p0, p1 = self._range(p0, p1)
        if src != dst and (p0 > 0 or p1 != -1):
            if self._has_state():
                raise ValueError(
                    f"p0={p0}, p1={p1}: a recurrent state has no parts, only a whole sequence can be copied"
                )
            if not self._context.params.kv_unified:
                raise ValueError(
                    f"p0={p0}, p1={p1}: without kv_unified=True only a whole sequence can be copied. "
                    "Copy it whole, then memory.remove() what is too much"
                )
        with self._handle:
            memory = self._there()
            if src != dst:
                # Without this dst keeps what it had there, beside the copy, and attends to both.
                lib.llama_memory_seq_rm(memory, dst, p0, p1)
                lib.llama_memory_seq_cp(memory, src, dst, p0, p1)
                if self._has_streams():
                    self._context._moving |= COPYING
                    self._context._copying.add((src, dst))
                raise_caught()

    def keep(self, seq_id: int) -> None:
        """Forget every sequence but this one.

        Not by ``llama_memory_seq_keep``: without ``kv_unified`` that one looks only at the kept sequence's own stream.
        """
        seq_id = self._seq("seq_id", seq_id)
        with self._handle:
            memory = self._there()
            for other in range(self._context.n_seq_max):
                if other != seq_id:
                    lib.llama_memory_seq_rm(memory, other, -1, -1)
            raise_caught()

    def shift(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Add ``delta`` to the positions in [p0, p1); the next decode moves the keys (``llama_memory_seq_add``).

        Raises ContextError where ``can_shift`` is False.
        """
        seq_id = self._seq("seq_id", seq_id)
        p0, p1 = self._range(p0, p1)
        with self._handle:
            memory = self._shiftable()
            last = lib.llama_memory_seq_pos_max(memory, seq_id)
            number("delta", delta, -MAX_POS, MAX_POS - max(last, 0))
            lib.llama_memory_seq_add(memory, seq_id, p0, p1, delta)
            self._context._moving |= TURNING
            raise_caught()

    def divide(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        """Divide the positions in [p0, p1) by ``d``, at least 1, rounding down; the next decode moves the keys.

        By ``llama_memory_seq_add`` for each position, as the pinned ``llama_memory_seq_div`` turns the keys the wrong way.

        Raises ContextError where ``can_shift`` is False, ValueError for more than 2**24 positions.
        """
        seq_id = self._seq("seq_id", seq_id)
        p0, p1 = self._range(p0, p1)
        d = number("d", d, 1)
        with self._handle:
            memory = self._shiftable()
            begin = max(p0, lib.llama_memory_seq_pos_min(memory, seq_id), 1)  # 0 stays where it is
            end = lib.llama_memory_seq_pos_max(memory, seq_id) + 1
            end = end if p1 == -1 else min(p1, end)
            number("p1 - p0", max(end - begin, 0), 0, MAX_TOKENS)
            self._context._moving |= TURNING
            if d > 1:
                for pos in range(begin, end):  # upwards: what has moved lies below what is still to be moved
                    lib.llama_memory_seq_add(memory, seq_id, pos, pos + 1, pos // d - pos)
            raise_caught()

    def positions(self, seq_id: int) -> range:
        """Return the positions that are there; empty for an unused sequence (``llama_memory_seq_pos_min``, ``_max``).

        A sliding window forgets the oldest, so the range need not begin at 0; a recurrent state has its last position only.
        """
        seq_id = self._seq("seq_id", seq_id)
        with self._handle:
            memory = self._there()
            first = lib.llama_memory_seq_pos_min(memory, seq_id)
            last = lib.llama_memory_seq_pos_max(memory, seq_id)
        return range(first, last + 1) if last >= 0 else range(0)

    @property
    def can_shift(self) -> bool:
        """Whether ``shift`` and ``divide`` work for this model and ``type_k`` (``llama_memory_can_shift``).

        False for recurrent and hybrid models, too: their state has no parts to move, and a copy shares it until it is
        decoded, so that llama.h would move one with the other. And for architectures whose keys llama.h would move wrong:
        those with learned positions, with layers without RoPE, or with keys that are scaled after RoPE. Quantized keys can
        be moved where heads have a multiple of 64 values, and RoPE turns all of them.
        """
        with self._handle:
            return self._can_shift(self._there())

    def _can_shift(self, memory: object) -> bool:
        model = self._context.model
        stay = (
            self._has_state()
            or model._learned_positions
            or model._architecture in _KEYS_THAT_STAY
            or (model.n_swa > 0 and model._architecture in _NO_ROPE_BESIDE_WINDOWS)
        )
        return self._can_turn and not stay and bool(lib.llama_memory_can_shift(memory))

    def _has_streams(self) -> bool:
        """Return whether each sequence has cells of its own, which the next decode copies; deepseek4's always have some."""
        model = self._context.model
        return not model.is_recurrent and (not self._context.params.kv_unified or model._architecture == "deepseek4")

    def _has_state(self) -> bool:
        """Return whether there is a state that only the whole past has made, and that cannot go back."""
        return self._context.model.is_recurrent or self._context.model.is_hybrid

    def _refuse_moving(self, what: int, seq_id: int | None = None, *, writing: bool = False) -> None:
        """Raise StateError where the next decode is still to move what a state would hold; to copy, for one sequence.

        Where that is to be written it must not be a source either.
        """
        self._there()
        moving = self._context._moving & what
        if moving & COPYING and seq_id is not None:
            pairs = self._context._copying
            if not any(target == seq_id or (writing and source == seq_id) for source, target in pairs):
                moving &= ~COPYING
        if moving:
            raise StateError(
                f"{self._handle.name}: positions were shifted, or a sequence was copied, and the next decode is to move the "
                "data: decode something first"
            )

    def _there(self) -> object:
        if not self._ptr:
            raise ContextError(f"{self._handle.name} has no memory: its model has no decoder")
        return self._ptr

    def _shiftable(self) -> object:
        memory = self._there()
        if not self._can_shift(memory):
            raise ContextError(f"{self._handle.name} cannot move positions: can_shift is False")
        return memory

    def _seq(self, name: str, seq_id: int) -> int:
        return sequence(name, seq_id, self._context.params.n_seq_max)

    @staticmethod
    def _range(p0: int, p1: int) -> tuple[int, int]:
        return number("p0", p0, -1), number("p1", p1, -1)


def head_sizes(model: Model, *keys: str) -> set[int]:
    """Return what the model's metadata say of its heads under the first key that is there, or else their default."""
    arch = model.metadata.get("general.architecture", "")
    for key in keys:
        values = [model.metadata.get(f"{arch}.{key}{suffix}", "") for suffix in ("", "_swa")]
        if sizes := {int(value) for value in values if value.isdigit()}:
            return sizes
    return {model.n_embd // max(model.n_head, 1)}


def _can_turn(model: Model, params: ContextParams) -> bool:
    """Return whether keys of this type can be turned: quantized ones only whole, in heads of a multiple of 64 values.

    Of others llama.cpp turns the wrong values, or follows a null pointer (``llama_kv_cache::build_rope_shift``).
    """
    if model.is_recurrent or not lib.ggml_is_quantized(KV_TYPES[params.type_k]):
        return True
    heads = head_sizes(model, "attention.key_length")
    turned = head_sizes(model, "rope.dimension_count", "attention.key_length")
    plain = os.environ.get("LLAMA_ATTN_ROT_DISABLE", "0") == "0"
    return plain and len(heads) == 1 and turned == heads and not any(size % _BLOCK for size in heads)

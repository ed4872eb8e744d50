"""Restoring: states and snapshots of a memory, taken and put back (``llama_state_*``).

llama.h returns 0 where it fails, and leaves cells without data behind. So a failed load is followed by forgetting what it
was loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import StateError
from offgrid_llama.native.backend import build_info
from offgrid_llama.native.callbacks import recent_log
from offgrid_llama.native.check import number, raise_caught, sequence
from offgrid_llama.native.enums import KV_TYPES

from .moves import COPYING, TURNING
from .state import Snapshot, State, envelope

if TYPE_CHECKING:
    from offgrid_llama.model.model import Model
    from offgrid_llama.model.params import ContextParams

    from .memory import Memory

__all__ = ["Layout", "Snapshots", "copy_sequence", "load", "save"]

_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


class Layout:
    """The facts of a context that must be the same where a state is saved and where it is loaded.

    Args:
        model, params: the context's.
        fingerprints: returns the adapters that the data is computed with, as those of AdaptersInUse.
    """

    def __init__(self, model: Model, params: ContextParams, fingerprints: Callable[[], Mapping[str, float]]) -> None:
        self._model = model
        self._params = params
        self._fingerprints = fingerprints
        self.n_seq_max = params.n_seq_max

    def facts(self) -> dict[str, Any]:
        """Return the facts as they are now, for the header of a state."""
        info, params = build_info(), self._params
        return {
            "model": self._model.fingerprint(),
            "llama_cpp": info.commit or info.llama_cpp,
            "kv_unified": params.kv_unified,
            "n_seq_max": 1 if params.kv_unified else params.n_seq_max,  # llama.cpp's streams
            "swa_full": params.swa_full,
            "type_k": params.type_k,
            "type_v": params.type_v,
            "adapters": self._fingerprints(),
        }


def save(memory: Memory, layout: Layout, seq_id: int | None, tokens: Sequence[int]) -> State:
    """Return the state of a memory (``llama_state_get_data``), or of one sequence (``llama_state_seq_get_data``)."""
    seq_id = _checked(seq_id, layout.n_seq_max)
    ids = [number(f"tokens[{i}]", token, -(2**31)) for i, token in enumerate(tokens)]
    with memory.handle as ptr:
        memory.pointer()
        memory.moves.refuse(memory.handle.name, TURNING | COPYING, seq_id)
        size = lib.llama_state_get_size(ptr) if seq_id is None else lib.llama_state_seq_get_size(ptr, seq_id)
        check_count(size, size)
        blob, begin = envelope(layout.facts(), seq_id, ids, size)
        with ffi.from_buffer("uint8_t[]", blob, require_writable=True) as room:
            data = room + begin
            if seq_id is None:
                check_count(lib.llama_state_get_data(ptr, data, size), size)
            else:
                check_count(lib.llama_state_seq_get_data(ptr, data, size, seq_id), size)
    return State(blob)


def load(memory: Memory, layout: Layout, state: State, seq_id: int | None) -> None:
    """Let a memory go on from a state (``llama_state_set_data``, ``llama_state_seq_set_data``)."""
    seq_id = _checked(seq_id, layout.n_seq_max)
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, not {type(state).__name__}; see State.from_bytes and State.load")
    if (state.seq_id is None) != (seq_id is None):
        kind, other = ("one sequence", "seq_id=N") if seq_id is None else ("a whole context", "seq_id=None")
        raise StateError(f"the state holds {kind}: load it with {other}")
    for name, here in layout.facts().items():
        there = state.header.get(name)
        if there != here:
            raise StateError(f"the state is for another {name.replace('_', ' ')}: {there!r}, and this is {here!r}")
    size = state.header["n_bytes"]
    with memory.handle as ptr, ffi.from_buffer("uint8_t[]", state.blob) as room:
        memory.pointer()
        memory.moves.refuse(memory.handle.name, COPYING, seq_id, writing=True)
        data = room + state.begin
        if seq_id is not None:
            _set_sequence(memory, seq_id, lambda: lib.llama_state_seq_set_data(ptr, data, size, seq_id), size)
            return
        done = lib.llama_state_set_data(ptr, data, size)
        memory.moves.clear()
        try:
            check_count(done, size)
        except StateError:
            lib.llama_memory_clear(memory.ptr, True)
            raise


def copy_sequence(memory: Memory, source: int, target: int) -> None:
    """Let a sequence have what another one holds, through host memory. Internal, for the engine, which keeps no state.

    Raises StateError as ``save`` and ``load`` do; then ``target`` is empty, or as it was.
    """
    with memory.handle as ptr:
        memory.pointer()
        memory.moves.refuse(memory.handle.name, TURNING | COPYING, source)
        memory.moves.refuse(memory.handle.name, COPYING, target, writing=True)
        size = lib.llama_state_seq_get_size(ptr, source)
        check_count(size, size)
        data = _new_uncleared("uint8_t[]", size)
        check_count(lib.llama_state_seq_get_data(ptr, data, size, source), size)
        _set_sequence(memory, target, lambda: lib.llama_state_seq_set_data(ptr, data, size, target), size)


class Snapshots:
    """The snapshots that llama.cpp keeps for one context: the last of each sequence."""

    def __init__(self, memory: Memory, params: ContextParams) -> None:
        self._memory = memory
        self._params = params
        self._kept: dict[int, Snapshot] = {}

    def take(self, seq_id: int) -> Snapshot:
        """Keep what a sequence holds on its devices (``llama_state_seq_get_data_ext`` with ``ON_DEVICE``)."""
        seq_id = sequence("seq_id", seq_id, self._params.n_seq_max)
        for name in ("type_k", "type_v"):
            kind = getattr(self._params, name)
            if lib.ggml_is_quantized(KV_TYPES[kind]):  # llama.cpp takes blocks for values there, and copies a part
                raise StateError(f"{name}={kind!r}: no snapshots of a quantized KV cache")
        memory, flags = self._memory, lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
        with memory.handle as ptr:
            memory.pointer()
            memory.moves.refuse(memory.handle.name, TURNING | COPYING)
            self._kept.pop(seq_id, None)
            size = lib.llama_state_seq_get_size_ext(ptr, seq_id, flags)
            check_count(size, size)
            blob = ffi.new("uint8_t[]", size)
            check_count(lib.llama_state_seq_get_data_ext(ptr, blob, size, seq_id, flags), size)
            taken = self._kept[seq_id] = Snapshot(memory.owner, memory.handle.name, seq_id, blob)
        return taken

    def restore(self, snapshot: Snapshot, seq_id: int | None) -> None:
        """Let a sequence, its own for None, have what a snapshot holds (``llama_state_seq_set_data_ext``)."""
        seq_id = _checked(seq_id, self._params.n_seq_max)
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"snapshot must be a Snapshot, not {type(snapshot).__name__}; for a State see load_state")
        memory = self._memory
        if snapshot.owner is not memory.owner:
            raise StateError(f"the snapshot is of another context, {snapshot.name}")
        target = snapshot.seq_id if seq_id is None else seq_id
        with memory.handle as ptr:
            memory.pointer()
            memory.moves.refuse(memory.handle.name, COPYING)
            if self._kept.get(snapshot.seq_id) is not snapshot:
                raise StateError(f"a later snapshot of sequence {snapshot.seq_id} has taken the place of this one")
            blob, flags = snapshot.blob, lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
            size = len(blob)
            _set_sequence(
                memory, target, lambda: lib.llama_state_seq_set_data_ext(ptr, blob, size, target, flags), size
            )


def _set_sequence(memory: Memory, seq_id: int, set_data: Callable[[], int], size: int) -> None:
    """Put data into a sequence by ``set_data``, which returns how many bytes it used; it is empty where that fails."""
    lib.llama_memory_seq_rm(memory.ptr, seq_id, -1, -1)  # llama.h leaves it as it was for the data of an empty sequence
    done = set_data()
    try:
        check_count(done, size)
    except StateError:
        lib.llama_memory_seq_rm(memory.ptr, seq_id, -1, -1)
        raise


def _checked(seq_id: int | None, n_seq_max: int) -> int | None:
    return None if seq_id is None else sequence("seq_id", seq_id, n_seq_max)


def check_count(count: int, size: int) -> None:
    """Raise unless llama.h used ``size`` bytes; it returns 0 where it failed."""
    if count == size and 0 < size < 2**63:
        return
    raise_caught()
    raise StateError("llama.cpp could not save or restore the state", log=recent_log())

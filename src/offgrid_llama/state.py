"""State: what a context has computed, as bytes that another context of the same model can go on from.

llama.h writes these bytes and reads them back almost unchecked: it takes another model's whole, allocates whatever a
damaged length asks for, and leaves cells without data behind when it fails (``llama_state_set_data``). So they travel in
an envelope, and nothing reaches llama.h that does not fit:

=========  ==================================================================================================
8 bytes    magic, with the version of this layout
uint32     length of the header
header     JSON: the model's fingerprint, llama.cpp's version, the context's layout, lengths of what follows
int32[]    the caller's tokens
uint8[]    llama.h's own state
32 bytes   BLAKE2b of all before
=========  ==================================================================================================

All numbers are little-endian. The checksum finds damage, not malice: whoever can write a state can write its checksum.

A ``Snapshot`` is the same for forks inside one context: its data never leaves the devices' memory, and so never comes from
elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._capi import ffi, lib
from ._check import number, raise_caught
from .backend import build_info
from .errors import StateError
from .memory import COPYING, TURNING
from .params import KV_TYPES

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Snapshot", "State"]

_MAGIC = b"OGSTATE\x01"
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 32
_CHUNK = 1024 * 1024
_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


class State:
    """An immutable state, from ``context.save_state()``, or from bytes or a file that one was written to.

    Attributes:
        tokens: what the caller gave to ``save_state``, usually the tokens that were computed.
        seq_id: the sequence that it holds, or None for the whole context.
        n_bytes: its size in bytes, as ``bytes(state)`` and in a file.
    """

    def __init__(self, blob: bytes | bytearray) -> None:
        self._unsealed = blob if isinstance(blob, bytearray) else None  # has no checksum yet
        self._blob = memoryview(blob).toreadonly()
        self.n_bytes = len(self._blob)
        self._header, begin = _header(self._blob)
        count = self._header["n_tokens"]
        self._payload = begin + 4 * count
        self.tokens: tuple[int, ...] = struct.unpack_from(f"<{count}i", self._blob, begin)
        self.seq_id: int | None = self._header["seq_id"]

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> State:
        """Read what ``bytes(state)`` gave.

        Raises StateError for bytes that are no state, are damaged or cut off, or come from another version.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        blob = bytes(data)
        _check(memoryview(blob))
        return cls(blob)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> State:
        """Read a file that ``save`` wrote. Raises OSError, and StateError as ``from_bytes`` does."""
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except StateError as error:
            raise StateError(f"{path}: {error.message}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file: under its final name it is whole, or what was there before."""
        self._seal()
        path = Path(path)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._blob)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise

    def _seal(self) -> None:
        """Compute the checksum, which takes longer than all else, and is for states that are written down."""
        if self._unsealed is not None:
            self._unsealed[-_DIGEST_BYTES:] = _digest(memoryview(self._unsealed)[:-_DIGEST_BYTES])
            self._unsealed = None

    def __bytes__(self) -> bytes:
        self._seal()
        return bytes(self._blob)

    def __len__(self) -> int:
        return self.n_bytes

    def __repr__(self) -> str:
        what = "the whole context" if self.seq_id is None else f"sequence {self.seq_id}"
        return f"<State of {what}: {self.n_bytes:,} bytes, {len(self.tokens)} tokens>"


def save(context: Context, seq_id: int | None, tokens: Sequence[int]) -> State:
    """Return the state of a context (``llama_state_get_data``), or of one sequence (``llama_state_seq_get_data``)."""
    ids = [number(f"tokens[{i}]", token, -(2**31)) for i, token in enumerate(tokens)]
    with context._handle as ptr:
        context.memory._refuse_moving(TURNING | COPYING, seq_id)
        size = lib.llama_state_get_size(ptr) if seq_id is None else lib.llama_state_seq_get_size(ptr, seq_id)
        _written(size, size)
        header = {**_layout(context), "seq_id": seq_id, "n_tokens": len(ids), "n_bytes": size}
        head = json.dumps(header, separators=(",", ":")).encode("ascii")
        begin = b"".join([_MAGIC, _LENGTH.pack(len(head)), head, struct.pack(f"<{len(ids)}i", *ids)])
        blob = bytearray(len(begin) + size + _DIGEST_BYTES)
        blob[: len(begin)] = begin
        with ffi.from_buffer("uint8_t[]", blob, require_writable=True) as room:
            data = room + len(begin)
            if seq_id is None:
                _written(lib.llama_state_get_data(ptr, data, size), size)
            else:
                _written(lib.llama_state_seq_get_data(ptr, data, size, seq_id), size)
    return State(blob)


def load(context: Context, state: State, seq_id: int | None) -> None:
    """Let a context go on from a state (``llama_state_set_data``, ``llama_state_seq_set_data``)."""
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, not {type(state).__name__}; see State.from_bytes and State.load")
    if (state.seq_id is None) != (seq_id is None):
        kind, other = ("one sequence", "seq_id=N") if seq_id is None else ("a whole context", "seq_id=None")
        raise StateError(f"the state holds {kind}: load it with {other}")
    for name, here in _layout(context).items():
        there = state._header.get(name)
        if there != here:
            raise StateError(f"the state is for another {name.replace('_', ' ')}: {there!r}, and this is {here!r}")
    size = state._header["n_bytes"]
    with context._handle as ptr, ffi.from_buffer("uint8_t[]", state._blob) as room:
        context.memory._refuse_moving(COPYING, seq_id, writing=True)
        data = room + state._payload
        if seq_id is None:
            done = lib.llama_state_set_data(ptr, data, size)
        else:
            lib.llama_memory_seq_rm(context.memory._ptr, seq_id, -1, -1)  # it would keep what it had for an empty state
            done = lib.llama_state_seq_set_data(ptr, data, size, seq_id)
        if seq_id is None:
            context._moving = 0
            context._copying.clear()
        try:
            _written(done, size)
        except StateError:
            # What it has left may be cells without data.
            if seq_id is None:
                lib.llama_memory_clear(context.memory._ptr, True)
            else:
                lib.llama_memory_seq_rm(context.memory._ptr, seq_id, -1, -1)
            raise


def copy_sequence(context: Context, source: int, target: int) -> None:
    """Let a sequence have what another one holds, through host memory: the engine's, which keeps nothing of it.

    Raises StateError as ``save`` and ``load`` do; ``target`` is empty then, or as it was.
    """
    with context._handle as ptr:
        context.memory._refuse_moving(TURNING | COPYING, source)
        context.memory._refuse_moving(COPYING, target, writing=True)
        size = lib.llama_state_seq_get_size(ptr, source)
        _written(size, size)
        data = _uncleared("uint8_t[]", size)
        _written(lib.llama_state_seq_get_data(ptr, data, size, source), size)
        lib.llama_memory_seq_rm(context.memory._ptr, target, -1, -1)  # it would keep what it had for an empty state
        try:
            _written(lib.llama_state_seq_set_data(ptr, data, size, target), size)
        except StateError:
            lib.llama_memory_seq_rm(context.memory._ptr, target, -1, -1)
            raise


class Snapshot:
    """What one sequence held when ``context.snapshot()`` was called, for ``context.restore()``; it stays in the context.

    Attributes:
        seq_id: the sequence that it is of. llama.cpp keeps the last snapshot of each sequence, until the context is closed.
    """

    def __init__(self, context: Context, seq_id: int, blob: Any) -> None:
        self.seq_id = seq_id
        self._context = context
        self._blob = blob  # where llama.cpp put what, without the data

    def __repr__(self) -> str:
        return f"<Snapshot of sequence {self.seq_id}, {self._context._handle.name}>"


def snapshot(context: Context, seq_id: int) -> Snapshot:
    """Keep what a sequence holds on its devices (``llama_state_seq_get_data_ext`` with ``ON_DEVICE``)."""
    quantized = [
        name for name in ("type_k", "type_v") if lib.ggml_is_quantized(KV_TYPES[getattr(context.params, name)])
    ]
    if quantized:  # llama.cpp takes blocks for values there, and copies a part
        raise StateError(
            f"{quantized[0]}={getattr(context.params, quantized[0])!r}: no snapshots of a quantized KV cache"
        )
    with context._handle as ptr:
        context.memory._refuse_moving(TURNING | COPYING)
        context._snapshots.pop(seq_id, None)
        size = lib.llama_state_seq_get_size_ext(ptr, seq_id, lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE)
        _written(size, size)
        blob = ffi.new("uint8_t[]", size)
        _written(lib.llama_state_seq_get_data_ext(ptr, blob, size, seq_id, lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE), size)
        taken = context._snapshots[seq_id] = Snapshot(context, seq_id, blob)
    return taken


def restore(context: Context, snapshot: Snapshot, seq_id: int | None) -> None:
    """Let a sequence, None for its own, have what a snapshot holds (``llama_state_seq_set_data_ext`` with ``ON_DEVICE``)."""
    if not isinstance(snapshot, Snapshot):
        raise TypeError(f"snapshot must be a Snapshot, not {type(snapshot).__name__}; for a State see load_state")
    if snapshot._context is not context:
        raise StateError(f"the snapshot is of another context, {snapshot._context._handle.name}")
    if seq_id is None:
        seq_id = snapshot.seq_id
    with context._handle as ptr:
        context.memory._refuse_moving(COPYING)
        if context._snapshots.get(snapshot.seq_id) is not snapshot:
            raise StateError(f"a later snapshot of sequence {snapshot.seq_id} has taken the place of this one")
        blob = snapshot._blob
        lib.llama_memory_seq_rm(context.memory._ptr, seq_id, -1, -1)  # it would keep what it had for an empty snapshot
        done = lib.llama_state_seq_set_data_ext(ptr, blob, len(blob), seq_id, lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE)
        try:
            _written(done, len(blob))
        except StateError:
            lib.llama_memory_seq_rm(context.memory._ptr, seq_id, -1, -1)
            raise


def _layout(context: Context) -> dict[str, Any]:
    """Return what must be the same where a state is saved and where it is loaded."""
    info, params = build_info(), context.params
    return {
        "model": context.model.fingerprint(),
        "llama_cpp": info.commit or info.llama_cpp,
        "kv_unified": params.kv_unified,
        "n_seq_max": 1 if params.kv_unified else context.n_seq_max,  # streams
        "swa_full": params.swa_full,
        "type_k": params.type_k,
        "type_v": params.type_v,
        "adapters": context._adapters,
    }


def _written(count: int, size: int) -> None:
    """Raise unless llama.h used ``size`` bytes; it returns 0 where it failed."""
    if count == size and 0 < size < 2**63:
        return
    raise_caught()
    from ._callbacks import recent_log

    raise StateError("llama.cpp could not save or restore the state", log=recent_log())


def _check(blob: memoryview) -> None:
    """Raise StateError for anything but a whole, undamaged state of this version."""
    if len(blob) < len(_MAGIC) + _LENGTH.size + _DIGEST_BYTES or blob[: len(_MAGIC) - 1] != _MAGIC[:-1]:
        raise StateError("this is no state")
    if blob[: len(_MAGIC)] != _MAGIC:
        raise StateError(f"the state has version {blob[len(_MAGIC) - 1]}; this is version {_MAGIC[-1]}")
    if _digest(blob[:-_DIGEST_BYTES]) != blob[-_DIGEST_BYTES:]:
        raise StateError("the state is damaged or cut off: its checksum is wrong")
    try:
        header, begin = _header(blob)
        whole = begin + 4 * header["n_tokens"] + header["n_bytes"] + _DIGEST_BYTES
        seq_id = header["seq_id"]
    except (KeyError, TypeError, ValueError):
        raise StateError("the state's header cannot be read") from None
    if whole != len(blob) or not (seq_id is None or isinstance(seq_id, int)) or header["n_tokens"] < 0:
        raise StateError("the state's header does not fit what follows it")


def _header(blob: memoryview) -> tuple[dict[str, Any], int]:
    """Return the header and where it ends."""
    begin = len(_MAGIC) + _LENGTH.size
    end = begin + _LENGTH.unpack_from(blob, len(_MAGIC))[0]
    return json.loads(bytes(blob[begin:end])), end


def _digest(blob: memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for begin in range(0, len(blob), _CHUNK):
        digest.update(blob[begin : begin + _CHUNK])
    return digest.digest()

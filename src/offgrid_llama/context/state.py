"""State: what a context has computed, as bytes that another context of the same model can go on from.

llama.h writes these bytes and reads them back almost unchecked (``llama_state_set_data``): it accepts those of another
model, and allocates what a damaged length asks for. So they travel in an envelope, and only what fits reaches llama.h:

=========  ==================================================================================================
8 bytes    magic, with the version of this layout
uint32     length of the header
header     JSON: the model's fingerprint, llama.cpp's version, the context's layout, lengths of what follows
int32[]    the caller's tokens
uint8[]    llama.h's own state
32 bytes   BLAKE2b of all bytes before
=========  ==================================================================================================

All numbers are little-endian. The checksum finds damage, not malice: a program that writes a state can write its checksum.

A ``Snapshot`` is the same for forks inside one context. Its data stays in the memory of the devices, so it never comes from
another program.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import StateError
from offgrid_llama.files.atomic import new_private_file, replacing
from offgrid_llama.native.bound import Bound

if TYPE_CHECKING:
    from offgrid_llama.native.handle import Owner

__all__ = ["MAGIC", "Snapshot", "State", "checksum", "envelope"]

MAGIC = b"OGSTATE\x01"  # its last byte is the version of the layout
_LENGTH = struct.Struct("<I")
DIGEST_BYTES = 32
_HASHED_BYTES = 1024 * 1024
"""Bytes that are hashed at a time, so that other threads can have the GIL in between."""


class State:
    """An immutable state, from ``context.save_state()``, or from bytes or a file that one was written to.

    Attributes:
        tokens: the tokens that were given to ``save_state``, usually those that were decoded.
        seq_id: the sequence that it holds; None for the whole context.
        n_bytes: its size in bytes, as ``bytes(state)`` and in a file.
        header, blob, begin: internal. The header; the whole envelope, and the place where llama.h's own state begins in it.
    """

    def __init__(self, blob: bytes | bytearray) -> None:
        self._unsealed = blob if isinstance(blob, bytearray) else None  # has no checksum yet
        self.blob = memoryview(blob).toreadonly()
        self.n_bytes = len(self.blob)
        self.header, begin = _header(self.blob)
        n_tokens = self.header["n_tokens"]
        self.begin = begin + 4 * n_tokens
        self.tokens: tuple[int, ...] = struct.unpack_from(f"<{n_tokens}i", self.blob, begin)
        self.seq_id: int | None = self.header["seq_id"]

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> State:
        """Return the state of ``bytes(state)``.

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
        """Write the state to a file that only its owner may read. It gets its name when it is complete.

        Until then, and after a failure, a file of that name stays as it was.
        """
        self._seal()
        with replacing(Path(path)) as unfinished, new_private_file(unfinished) as file:
            file.write(self.blob)

    def _seal(self) -> None:
        """Compute the checksum. It takes longer than all the rest, and only states that leave the process need one."""
        if self._unsealed is not None:
            self._unsealed[-DIGEST_BYTES:] = checksum(memoryview(self._unsealed)[:-DIGEST_BYTES])
            self._unsealed = None

    def __bytes__(self) -> bytes:
        self._seal()
        return bytes(self.blob)

    def __reduce__(self) -> tuple[Any, ...]:
        return State.from_bytes, (bytes(self),)

    def __copy__(self) -> State:
        return self  # it does not change

    def __deepcopy__(self, _memo: object) -> State:
        return self

    def __len__(self) -> int:
        return self.n_bytes

    def __repr__(self) -> str:
        what = "the whole context" if self.seq_id is None else f"sequence {self.seq_id}"
        return f"<State of {what}: {self.n_bytes:,} bytes, {len(self.tokens)} tokens>"


def envelope(facts: dict[str, Any], seq_id: int | None, tokens: Sequence[int], n_bytes: int) -> tuple[bytearray, int]:
    """Return an envelope with room for ``n_bytes`` of llama.h's own, and where that room begins; it has no checksum yet."""
    header = {**facts, "seq_id": seq_id, "n_tokens": len(tokens), "n_bytes": n_bytes}
    head = json.dumps(header, separators=(",", ":")).encode("ascii")
    front = b"".join([MAGIC, _LENGTH.pack(len(head)), head, struct.pack(f"<{len(tokens)}i", *tokens)])
    blob = bytearray(len(front) + n_bytes + DIGEST_BYTES)
    blob[: len(front)] = front
    return blob, len(front)


def _check(blob: memoryview) -> None:
    """Raise StateError for anything but a whole, undamaged state of this version."""
    if len(blob) < len(MAGIC) + _LENGTH.size + DIGEST_BYTES or blob[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise StateError("this is no state")
    if blob[: len(MAGIC)] != MAGIC:
        raise StateError(f"the state has version {blob[len(MAGIC) - 1]}; this is version {MAGIC[-1]}")
    if checksum(blob[:-DIGEST_BYTES]) != blob[-DIGEST_BYTES:]:
        raise StateError("the state is damaged or cut off: its checksum is wrong")
    try:
        header, begin = _header(blob)
        whole = begin + 4 * header["n_tokens"] + header["n_bytes"] + DIGEST_BYTES
        seq_id = header["seq_id"]
    except (KeyError, TypeError, ValueError):
        raise StateError("the state's header cannot be read") from None
    if whole != len(blob) or not (seq_id is None or isinstance(seq_id, int)) or header["n_tokens"] < 0:
        raise StateError("the state's header does not fit what follows it")


def _header(blob: memoryview) -> tuple[dict[str, Any], int]:
    """Return the header and where it ends."""
    begin = len(MAGIC) + _LENGTH.size
    end = begin + _LENGTH.unpack_from(blob, len(MAGIC))[0]
    return json.loads(bytes(blob[begin:end])), end


def checksum(blob: memoryview) -> bytes:
    """Return the BLAKE2b of an envelope without its last DIGEST_BYTES."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for begin in range(0, len(blob), _HASHED_BYTES):
        digest.update(blob[begin : begin + _HASHED_BYTES])
    return digest.digest()


class Snapshot(Bound):
    """A sequence at the time of ``context.snapshot()``, for ``context.restore()``. Its data stay in the context.

    Attributes:
        seq_id: its sequence. llama.cpp keeps the last snapshot of each sequence, until the context is closed.
        owner, name, blob: internal. The context and its name; where llama.cpp put the data, without the data itself.
    """

    _instead = "save_state gives a State, which can be pickled"

    def __init__(self, owner: Owner, name: str, seq_id: int, blob: Any) -> None:
        self.owner = owner
        self.name = name
        self.seq_id = seq_id
        self.blob = blob

    def __repr__(self) -> str:
        return f"<Snapshot of sequence {self.seq_id}, {self.name}>"

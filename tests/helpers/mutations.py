"""Mutated files: bytes changed, cut off, put in, taken out, or replaced by numbers that are on the edge."""

from __future__ import annotations

import random
import struct

EDGES = [0, 1, 2, 3, 0x7F, 0xFF, 0xFFFF, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def mutated(rng: random.Random, data: bytes, end: int | None = None) -> bytes:
    """Return data that was changed in one to four places before ``end``, half of them near the beginning."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        limit = min(end or len(changed), len(changed))
        at = rng.randrange(min(limit, 200) if rng.random() < 0.5 else limit)
        kind = rng.randrange(7)
        if kind < 2:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            size, letter = rng.choice([(2, "H"), (4, "I"), (8, "Q")])
            number = rng.choice(EDGES) % 2 ** (8 * size)
            changed[at : at + size] = struct.pack(rng.choice("<>") + letter, number)
        elif kind == 4 and end is None:
            del changed[at:]
        elif kind == 5 and end is None:
            del changed[at : at + rng.randint(1, 8)]
        elif kind == 6 and end is None:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
        if not changed:
            break
    return bytes(changed)


def mutated_header(rng: random.Random, data: bytes) -> bytes:
    """Return a GGUF file whose header was changed; one in ten is cut off instead."""
    if rng.random() < 0.1:
        return data[: rng.randrange(len(data))]
    end = max(data.rfind(b"weight"), data.rfind(b"bias")) + 40 if b"weight" in data[:20000] else None
    return mutated(rng, data, min(end or 4000, 8000))

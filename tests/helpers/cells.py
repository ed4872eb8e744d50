"""A memory of lists of tokens, for tests of what is planned for one."""

from __future__ import annotations

from offgrid_llama.engine.planning.limits import Trim
from offgrid_llama.engine.planning.operations import Copy, Forget, Keep, Load, Operation, Save, Spill


def operate(memory: list[list[int]], shelf: dict[int, list[int]], operation: Operation, trim: Trim = Trim.ANY) -> None:
    """Do with lists of tokens what a context does."""
    match operation:
        case Copy(source, target):
            assert not memory[target]
            memory[target] = list(memory[source])
        case Save(seq, key):
            assert key not in shelf
            shelf[key] = list(memory[seq])
        case Load(key, seq):
            assert not memory[seq]
            memory[seq] = list(shelf[key])
        case Spill(key):
            assert key in shelf
        case Forget(key):
            del shelf[key]
        case Keep(seq, length):
            assert len(memory[seq]) > length
            assert length == 0 or trim is not Trim.NOTHING
            del memory[seq][length:]

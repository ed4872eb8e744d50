"""CacheOperations: carries out the operations of a plan, and keeps the states of texts that have left the context."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from offgrid_llama.context.restoring import Layout, copy_sequence, load, save
from offgrid_llama.errors import StateError

from .planning.limits import Limits, Trim
from .planning.operations import Adapt, Copy, Forget, Keep, Load, Operation, Save, Shift, Spill

if TYPE_CHECKING:
    from offgrid_llama.context.context import Context
    from offgrid_llama.context.state import State

    from .spill import SpillFolder

__all__ = ["CacheOperations"]

_logger = logging.getLogger("offgrid_llama.engine")


class CacheOperations:
    """The memory of a context, and the shelf beside it.

    Args:
        context: the Context.
        limits: its Limits.
        disk: takes the states that host memory has no room for; None where none may be spilled.

    Attributes:
        states: the states in host memory, by key.
        disk: as given.
        saved: keys and bytes of the states that were saved, for the caller to take; None stands for one that is lost.
    """

    def __init__(self, context: Context, limits: Limits, disk: SpillFolder | None = None) -> None:
        self.states: dict[int, State] = {}
        self.disk = disk
        self.saved: list[tuple[int, int | None]] = []
        self._context = context
        first = dict(context.adapters.fingerprints)  # with others requests have a salt
        self._layout = Layout(context.model, context.params, lambda: first)
        has_own_cells = limits.trim is Trim.ANY and limits.n_cells is None
        self._may_copy_states = has_own_cells and not context.model.params.n_gpu_layers
        self._functions: dict[type[Operation], Callable[[Any], None]] = {
            Copy: self._copy, Keep: self._keep, Shift: self._shift, Save: self._save, Load: self._load, Spill: self._spill,
            Forget: self._forget, Adapt: lambda adapt: context.set_loras(dict(adapt.adapters)),
        }  # fmt: skip

    def carry_out(self, operations: Iterable[Operation]) -> None:
        """Carry out all operations, in their order, also where one fails: slots count on the others.

        Raises the first StateError.
        """
        failure: StateError | None = None
        for operation in operations:
            try:
                self._functions[type(operation)](operation)
            except StateError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def save(self, seq: int, tokens: Sequence[int] = ()) -> State:
        """Return the state of a sequence, as ``Context.save_state`` does, whatever adapters are in use by now."""
        return save(self._context.memory, self._layout, seq, tokens)

    def load(self, state: State, seq: int) -> None:
        """Let a sequence go on from a state, as ``Context.load_state`` does, whatever adapters are in use by now."""
        load(self._context.memory, self._layout, state, seq)

    def _copy(self, copy: Copy) -> None:
        # Between sequences with cells of their own llama.cpp copies all cells, the empty ones, too: at once on a GPU; on a
        # CPU it takes several milliseconds, and tenths of a second with a large model.
        memory = self._context.memory
        if self._may_copy_states and 2 * memory.positions(copy.source).stop < self._context.n_ctx_seq:
            with suppress(StateError, MemoryError):
                copy_sequence(memory, copy.source, copy.target)
                return
        memory.copy(copy.source, copy.target)

    def _keep(self, keep: Keep) -> None:
        memory = self._context.memory
        if not memory.remove(keep.seq, keep.length):
            # llama.cpp has given cells outside of the sliding window to other sequences, even with swa_full.
            memory.remove(keep.seq, 0)
            raise StateError(f"{memory!r} has nothing left before position {keep.length}")

    def _shift(self, shift: Shift) -> None:
        memory = self._context.memory
        if not memory.remove(shift.seq, shift.begin, shift.end):
            memory.remove(shift.seq, 0)
            raise StateError(f"{memory!r} cannot forget positions {shift.begin} to {shift.end}")
        memory.shift(shift.seq, shift.end, -1, shift.begin - shift.end)

    def _save(self, what: Save) -> None:
        n_bytes = None
        try:
            state = self.states[what.key] = self.save(what.seq)
            n_bytes = state.n_bytes
        except (StateError, MemoryError):
            _logger.warning("%r: sequence %d cannot be saved", self._context, what.seq, exc_info=True)
        self.saved.append((what.key, n_bytes))

    def _load(self, what: Load) -> None:
        try:
            self.load(self._state(what.key), what.seq)
        except StateError:
            self.saved.append((what.key, None))  # it would fail again
            raise

    def _state(self, key: int) -> State:
        state = self.states.get(key)
        if state is not None:
            return state
        if self.disk is None:
            raise StateError(f"{self._context!r}: a state that could not be saved cannot be loaded")
        return self.disk.get(key)

    def _spill(self, spill: Spill) -> None:
        state = self.states.pop(spill.key, None)
        if state is None or self.disk is None or not self.disk.put(spill.key, state):
            self.saved.append((spill.key, None))

    def _forget(self, forget: Forget) -> None:
        if self.states.pop(forget.key, None) is None and self.disk is not None:
            self.disk.forget(forget.key)

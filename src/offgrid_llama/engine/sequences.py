"""Sequences: the sequences of an engine as its callers see them, and what they hold, saved to files and read back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from offgrid_llama.context.state import State
from offgrid_llama.errors import StateError
from offgrid_llama.native.check import number
from offgrid_llama.native.kinds import path_of

from .planning.media_tokens import FIRST_MEDIA_TOKEN

if TYPE_CHECKING:
    from .loop import Loop
    from .planning.scheduler import Scheduler
    from .request import EngineRequest
    from .runner import Runner

__all__ = ["Moved", "SequenceView", "Sequences"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SequenceView:
    """A sequence as it is.

    Attributes:
        seq_id: its id.
        n_tokens: tokens that it has in memory.
        running: whether a request has it. The other attributes are about that request, and 0 without one.
        n_prompt, n_cached, n_generated: tokens of its prompt, of those that were computed before, and of its answer.
        max_tokens: the most tokens of its answer.
    """

    seq_id: int
    n_tokens: int
    running: bool = False
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """The result of saving, loading or erasing: tokens, bytes of the file, and the seconds that it took."""

    n_tokens: int
    n_bytes: int = 0
    seconds: float = 0.0


class Sequences:
    """The sequences of an engine. Each method may be called from any thread.

    A sequence that a request has is saved, loaded or erased when that request has ended; the call waits for it.
    """

    def __init__(self, loop: Loop, scheduler: Scheduler[EngineRequest], runner: Runner) -> None:
        self._loop = loop
        self._scheduler = scheduler
        self._runner = runner

    def views(self) -> list[SequenceView]:
        """Return views of all sequences, which may be a step old."""
        slots = self._scheduler.slots
        found = [SequenceView(seq, slots.n_computed(seq)) for seq in range(slots.n_slots)]
        for request, seq in self._scheduler.running():
            n_prompt, n_computed = request.events.n_prompt, slots.n_computed(seq)
            found[seq] = SequenceView(
                seq, n_computed, True, n_prompt, request.n_cached, len(request.tokens), request.max_tokens
            )
        return found

    def save(self, seq_id: int, path: str | os.PathLike[str], salt: str = "") -> Moved:
        """Write what a sequence holds to a file that only its owner may read.

        Args:
            seq_id: the sequence.
            path: of the file; it gets its name when it is complete.
            salt: the ``cache_salt`` of the requests that have computed it.

        Raises ValueError for an id that is not there; StateError for an empty sequence, or one of requests with another
        salt; OSError for a file that cannot be written.
        """
        path = path_of("path", path)
        begin = perf_counter()
        state = self._call(seq_id, partial(self._state, seq_id, salt))
        state.save(path)
        return Moved(len(state.tokens), state.n_bytes, perf_counter() - begin)

    def load(self, seq_id: int, path: str | os.PathLike[str], salt: str = "") -> Moved:
        """Let a sequence hold what ``save`` has written, for requests with this ``cache_salt``.

        Raises ValueError for an id that is not there; StateError for a file that is no state of this model, or one that does
        not fit; OSError for a file that cannot be read.
        """
        begin = perf_counter()
        state = State.load(path_of("path", path))
        self._call(seq_id, partial(self._adopt, seq_id, state, salt))
        return Moved(len(state.tokens), state.n_bytes, perf_counter() - begin)

    def erase(self, seq_id: int) -> Moved:
        """Let a sequence hold nothing. Raises ValueError for an id that is not there."""
        begin = perf_counter()
        n_tokens = self._call(seq_id, partial(self._erase, seq_id))
        return Moved(n_tokens, seconds=perf_counter() - begin)

    def _call(self, seq_id: int, function: Callable[[], _T]) -> _T:
        number("seq_id", seq_id, 0, self._scheduler.slots.n_slots - 1)
        return self._loop.call(function, lambda: all(seq != seq_id for _, seq in self._scheduler.running()))

    # In the engine's thread -------------------------------------------------------------------------------------------

    def _state(self, seq_id: int, salt: str) -> State:
        self._settle()
        tokens = self._scheduler.slots.plain_tokens(seq_id, salt)
        if max(tokens, default=0) >= FIRST_MEDIA_TOKEN:
            raise StateError(f"sequence {seq_id} holds pictures or sound, and cannot be saved")
        if not tokens:
            raise StateError(f"sequence {seq_id} holds nothing that these requests have computed")
        return self._runner.cache.save(seq_id, tokens)

    def _adopt(self, seq_id: int, state: State, salt: str) -> None:
        n, most = len(state.tokens), max(state.tokens, default=0)
        if state.seq_id is None or not n or n >= self._runner.context.n_ctx_seq or most >= FIRST_MEDIA_TOKEN:
            raise StateError(f"{state!r} is not that of a sequence of this engine")
        operations = self._scheduler.slots.adopt(seq_id, state.tokens, salt)
        self._settle()
        self._runner.cache.carry_out(operations)
        try:
            self._runner.cache.load(state, seq_id)
        except BaseException:
            self._scheduler.erase(seq_id)
            raise

    def _erase(self, seq_id: int) -> int:
        n_tokens = self._scheduler.slots.n_computed(seq_id)
        self._scheduler.erase(seq_id)
        self._settle()
        return n_tokens

    def _settle(self) -> None:
        """Carry out what the next plan would begin with."""
        self._runner.cache.carry_out(self._scheduler.pending())

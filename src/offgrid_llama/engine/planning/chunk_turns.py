"""ChunkTurns: when a step computes rows of a picture or a sound, and what waits for its encoder (pure).

llama.cpp computes either tokens or embeddings in one decode. So a chunk's rows are a step of their own, and every other step
is for the tokens of all requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic

from .media_tokens import Chunk
from .plan import R
from .running import Running
from .slots import Slots

__all__ = ["ChunkTurns"]


class ChunkTurns(Generic[R]):
    """The turns of chunks on one context.

    Args:
        slots: the context's.
        is_ready: whether the embeddings of the chunk with a head are there.

    Attributes:
        awaited: requests that go on when the embeddings of a chunk are there, each with that; since the last ``now``.
    """

    def __init__(self, slots: Slots, is_ready: Callable[[int], bool]) -> None:
        self.awaited: list[tuple[R, Chunk]] = []
        self._slots = slots
        self._is_ready = is_ready
        self._was_turn = False

    def now(self, running: Sequence[Running[R]]) -> Sequence[Running[R]]:
        """Return those of the running requests that can go on."""
        self.awaited = []
        for run in running:
            chunk = self._chunk(run)
            if chunk is not None and not self._is_ready(chunk.head):
                self.awaited.append((run.request, chunk))
        if not self.awaited:
            return running
        held = {request for request, _ in self.awaited}
        return [run for run in running if run.request not in held]

    def split(self, prompts: Sequence[Running[R]]) -> tuple[list[Running[R]], list[tuple[Running[R], Chunk]]]:
        """Return the prompts whose next tokens are text, and those that are in a chunk, each with that."""
        texts: list[Running[R]] = []
        others: list[tuple[Running[R], Chunk]] = []
        for run in prompts:
            chunk = self._chunk(run)
            if chunk is None:
                texts.append(run)
            else:
                others.append((run, chunk))
        return texts, others

    def is_turn(self, *, others_wait: bool) -> bool:
        """Return whether the next step is a chunk's: every other one, while anything else can be computed, too."""
        self._was_turn = not (others_wait and self._was_turn)
        return self._was_turn

    def _chunk(self, run: Running[R]) -> Chunk | None:
        return run.chunk(self._slots.n_computed(run.seq)) if run.request.chunks else None

"""Runs: the part of a Runner that the loop needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from offgrid_llama.sampling.step import Sampled

    from .planning.operations import Operation
    from .planning.plan import Plan
    from .request import EngineRequest

__all__ = ["Runs"]


class Runs(Protocol):
    """The part of a Runner that the loop needs; Runner describes it."""

    seconds: float
    n_steps: int
    n_guessed: int
    draft_seconds: float | None
    saved: list[tuple[int, int | None]]

    def run(self, plan: Plan[EngineRequest], n_steps: int = 1, seconds: float = ...) -> Sequence[Sampled | None]:
        """Make a step, or several."""

    def carry_out(self, operations: Sequence[Operation]) -> None:
        """Change memory without a step."""

    def sampled(self) -> Sequence[Sampled | None]:
        """Return the outcome of the steps before one that failed."""

    def lengths(self) -> list[int]:
        """Return how many positions of each sequence are in memory."""

    def set_n_threads(self, n_threads: int) -> None:
        """Compute with this number of threads."""

    def interrupt(self, on: bool = True) -> None:
        """Let each ``run`` return after one step."""

    def abort(self) -> None:
        """Let ``run`` raise Aborted within the step under way."""

    def rest(self) -> None:
        """Take that no step comes for a while."""

    def close(self) -> None:
        """Free what it has."""

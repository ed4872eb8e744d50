"""Estimates that are made up, so that a schedule goes by no clock."""

from __future__ import annotations

from collections.abc import Callable

from offgrid_llama.engine.planning.chunk_pace import ChunkPace
from offgrid_llama.engine.planning.costs import Costs
from offgrid_llama.engine.planning.pace import Pace
from offgrid_llama.engine.planning.padding import Padding


class MadeUpPace(Pace):
    """Gives prompts what a function says."""

    def __init__(self, budget: Callable[[int, float, int], int]) -> None:
        super().__init__(1)
        self.budget = budget

    def prompt_budget(self, n_generating: int, waiting: float, n_tokens: int) -> int:
        return self.budget(n_generating, waiting, n_tokens)

    def seconds_beside(self, n_generating: int, waiting: float) -> float | None:
        return self.budget(n_generating, waiting, 1) or None


class MadeUpChunkPace(ChunkPace):
    """Gives a picture as many rows as seconds."""

    def rows(self, seconds: float) -> int:
        return int(seconds)


class MadeUpPadding(Padding):
    """Adds as many rows as a function says."""

    def __init__(self, limit: int, pads: Callable[[int], int]) -> None:
        super().__init__(limit)
        self.pads = pads

    def n_pads(self, n_rows: int) -> int:
        return self.pads(n_rows)


class MadeUpCosts(Costs):
    """Takes guesses to cost what a function says."""

    def __init__(self, cost: Callable[[int, int], float]) -> None:
        super().__init__()
        self.cost = cost

    def slowdown(self, n_generating: int, n_guessed: int) -> float:
        return self.cost(n_generating, n_guessed)

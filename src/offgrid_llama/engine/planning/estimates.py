"""Estimates: what the engine has learned about the time of its steps, in one place (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .chunk_pace import ChunkPace
from .costs import Costs
from .drafting import Drafting
from .limits import Limits
from .pace import Pace
from .padding import Padding
from .plan import Plan

__all__ = ["Estimates"]


@dataclass
class Estimates:
    """Learns from each step.

    Attributes:
        pace: how many prompt tokens a step may take.
        costs: what guesses cost.
        padding: how many throw-away rows fill up a step; None adds none.
        drafting: how many tokens the draft model guesses; None without a draft model.
        chunks: how many rows of a picture a step of their own may take.
    """

    pace: Pace
    costs: Costs = field(default_factory=Costs)
    padding: Padding | None = None
    drafting: Drafting | None = None
    chunks: ChunkPace = field(default_factory=ChunkPace)

    @classmethod
    def of(cls, limits: Limits, *, drafts: bool = False) -> Estimates:
        """Return the estimates for a context, before its first step.

        Args:
            limits: its sizes.
            drafts: whether there is a draft model.
        """
        padding = Padding(limits.pad_limit) if limits.pad_limit else None
        drafting = Drafting() if drafts and limits.n_guessed else None
        return cls(Pace(limits.n_batch), Costs(apart=limits.n_cells is None), padding, drafting)

    def observe(self, plan: Plan[Any], n_guessed: int, seconds: float, draft_seconds: float | None) -> None:
        """Learn from a step.

        Args:
            plan: the plan that the step computed.
            n_guessed: tokens that it has computed besides those of prompts and one for each request that generates.
            seconds: how long it has taken.
            draft_seconds: how long the draft model has taken for a token of each request; None if unknown.
        """
        if plan.rows[0].chunk is not None:
            self.chunks.observe(plan.n_prompt, seconds)
            return
        if not n_guessed:
            self.pace.observe(plan.n_generating, plan.n_prompt, seconds)
            if not plan.n_prompt and self.padding is not None:
                self.padding.observe(plan.n_generating + len(plan.pads), seconds)
        if not plan.n_prompt:
            self.costs.observe(plan.n_generating, n_guessed, seconds)
        if draft_seconds is not None and self.drafting is not None:
            self.drafting.observe(draft_seconds)

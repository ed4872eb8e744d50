"""EngineStats: what an engine has done since it was made, and what it is doing."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EngineStats"]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts of an engine, since it was made and at this moment.

    Attributes:
        n_waiting: requests in the queue. n_running: requests that have a sequence.
        n_cached: idle sequences with tokens to reuse. n_free: sequences without tokens.
        cached_tokens: tokens in idle sequences.
        n_shelved: evicted texts that are kept. shelved_bytes, disk_bytes: what they take of host memory and of the disk.
        prompt_tokens: prompt tokens of all requests that have begun. prompt_tokens_cached: those of them that were computed
            before. generated_tokens: tokens generated for all requests.
        finished: how many requests have ended, by finish reason.
        n_steps: number of steps. step_seconds: time of all steps. last_step_seconds: time of the last one.
        guessed_tokens: guesses that were verified. guessed_tokens_right: those of them that were right.
        n_encoded: pictures and sounds that were encoded, each tile of a picture and each part of a sound for itself.
        n_failed_steps: steps that failed or were cancelled, after which the engine went on.
    """

    n_waiting: int
    n_running: int
    n_cached: int
    n_free: int
    cached_tokens: int
    n_shelved: int
    shelved_bytes: int
    disk_bytes: int
    prompt_tokens: int
    prompt_tokens_cached: int
    generated_tokens: int
    finished: dict[str, int]
    n_steps: int
    step_seconds: float
    last_step_seconds: float
    guessed_tokens: int
    guessed_tokens_right: int
    n_failed_steps: int
    n_encoded: int = 0

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that were computed before."""
        return self.prompt_tokens_cached / self.prompt_tokens if self.prompt_tokens else 0.0

"""LlamaServerMetrics: the server's numbers under the names of llama-server, for dashboards that were made for it."""

from __future__ import annotations

from collections.abc import Mapping

from offgrid_llama.worker.frames import Answered

__all__ = ["LlamaServerMetrics"]

_HELP = {
    "prompt_tokens_total": ("counter", "Number of prompt tokens processed."),
    "prompt_tokens_cached_total": ("counter", "Number of prompt tokens reused from the cache."),
    "prompt_seconds_total": ("counter", "Prompt process time"),
    "tokens_predicted_total": ("counter", "Number of generation tokens processed."),
    "tokens_predicted_seconds_total": ("counter", "Predict process time"),
    "n_decode_total": ("counter", "Total number of llama_decode() calls"),
    "n_tokens_max": ("counter", "Largest observed number of tokens of a request."),
    "spec_decode_num_draft_tokens_total": ("counter", "Total draft tokens generated."),
    "spec_decode_num_accepted_tokens_total": ("counter", "Total draft tokens accepted."),
    "spec_decode_num_drafts_total": ("counter", "Total verifications of drafts."),
    "prompt_tokens_seconds": ("gauge", "Average prompt throughput in tokens/s since the last scrape."),
    "predicted_tokens_seconds": ("gauge", "Average generation throughput in tokens/s since the last scrape."),
    "requests_processing": ("gauge", "Number of requests processing."),
    "requests_deferred": ("gauge", "Number of requests deferred."),
    "n_busy_slots_per_decode": ("gauge", "Average number of busy slots per llama_decode() call"),
}  # fmt: skip


class LlamaServerMetrics:
    """Counts what has been answered, over all models and all of their workers."""

    def __init__(self) -> None:
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = self._max_tokens = 0
        self._prompt_seconds = self._completion_seconds = 0.0
        self._pooled_decodes = 0
        self._told = (0, 0.0, 0, 0.0)  # tokens and seconds of prompts and of completions, at the last scrape
        self._engines: dict[str, Mapping[str, float]] = {}  # the latest numbers of each model's engine
        self._before: dict[str, float] = {}  # those of workers that have ended

    def count(self, answered: Answered) -> None:
        """Count a request that was answered."""
        tokens, timings = answered.tokens, answered.timings
        self._prompt_tokens += tokens.prompt - tokens.cached
        self._cached_tokens += tokens.cached
        self._completion_tokens += tokens.completion
        self._max_tokens = max(self._max_tokens, tokens.prompt + tokens.completion)
        if timings is not None:
            self._prompt_seconds += timings.prompt
            self._completion_seconds += timings.completion

    def count_pooled(self, n_tokens: int) -> None:
        """Count texts of which vectors or ranks were computed."""
        self._prompt_tokens += n_tokens
        self._pooled_decodes += 1

    def take(self, model: str, stats: Mapping[str, float]) -> None:
        """Take the numbers of a model's engine."""
        before = self._engines.get(model, {})
        if stats.get("n_steps", 0) < before.get("n_steps", 0):  # another worker
            for name in ("n_steps", "guessed_tokens", "guessed_tokens_right", "generated_tokens"):
                self._before[name] = self._before.get(name, 0) + before.get(name, 0)
        self._engines[model] = stats

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format. Throughputs are those since the last call."""
        lines = []
        for name, value in self._values().items():
            kind, told = _HELP[name]
            lines += [f"# HELP llamacpp:{name} {told}", f"# TYPE llamacpp:{name} {kind}", f"llamacpp:{name} {value}"]
        return "\n".join([*lines, ""]).encode()

    def _values(self) -> dict[str, float]:
        n_steps = self._of_engines("n_steps")
        now = (self._prompt_tokens, self._prompt_seconds, self._completion_tokens, self._completion_seconds)
        n_prompt, prompt_seconds, n_completion, completion_seconds = (
            value - before for value, before in zip(now, self._told, strict=True)
        )
        self._told = now
        return {
            "prompt_tokens_total": self._prompt_tokens, "prompt_tokens_cached_total": self._cached_tokens,
            "prompt_seconds_total": self._prompt_seconds, "tokens_predicted_total": self._completion_tokens,
            "tokens_predicted_seconds_total": self._completion_seconds,
            "n_decode_total": n_steps + self._pooled_decodes, "n_tokens_max": self._max_tokens,
            "spec_decode_num_draft_tokens_total": self._of_engines("guessed_tokens"),
            "spec_decode_num_accepted_tokens_total": self._of_engines("guessed_tokens_right"),
            "spec_decode_num_drafts_total": 0,
            "prompt_tokens_seconds": n_prompt / prompt_seconds if prompt_seconds else 0,
            "predicted_tokens_seconds": n_completion / completion_seconds if completion_seconds else 0,
            "requests_processing": self._now("n_running"), "requests_deferred": self._now("n_waiting"),
            "n_busy_slots_per_decode": self._of_engines("generated_tokens") / n_steps if n_steps else 0,
        }  # fmt: skip

    def _of_engines(self, name: str) -> float:
        return self._before.get(name, 0) + self._now(name)

    def _now(self, name: str) -> float:
        return sum(stats.get(name, 0) for stats in self._engines.values())

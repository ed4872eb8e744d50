"""Metrics: what Prometheus may know of the server. No text of anybody's is in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from .admission import Admission
    from .supervisor import Supervisor

__all__ = ["Metrics"]

_PREFIX = "offgrid_llama"
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts", "prompt_tokens_cached": "Tokens of prompts that were computed before",
    "generated_tokens": "Tokens generated", "n_steps": "Steps of the engine", "step_seconds": "Time in these steps",
    "guessed_tokens": "Tokens guessed and checked", "guessed_tokens_right": "Guesses that were right",
    "n_failed_steps": "Steps that have failed",
}  # fmt: skip
_GAUGES = {
    "n_running": "Requests that generate", "n_waiting": "Requests in the engine's queue",
    "n_cached": "Idle sequences with something to reuse", "cached_tokens": "Tokens in idle sequences",
    "shelved_bytes": "Bytes of prefixes in host memory", "disk_bytes": "Bytes of prefixes on disk",
}  # fmt: skip


class Metrics:
    """Counters of the server, and what the workers last told, on each scrape."""

    def __init__(self, supervisor: Supervisor, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{_PREFIX}_requests", "Requests, by path, model and status", ["path", "model", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter(
            f"{_PREFIX}_tokens", "Tokens that were answered with, by kind", ["model", "kind"], registry=self.registry
        )
        self.first_token = Histogram(
            f"{_PREFIX}_time_to_first_token_seconds", "From the request to its first token", ["model"], buckets=_FIRST,
            registry=self.registry,
        )  # fmt: skip
        self.between_tokens = Histogram(
            f"{_PREFIX}_inter_token_seconds", "Between what a stream sends", ["model"], buckets=_BETWEEN,
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Workers(supervisor, admission))

    def text(self) -> bytes:
        """Return them in Prometheus' format."""
        return generate_latest(self.registry)


class _Workers(Collector):
    def __init__(self, supervisor: Supervisor, admission: Admission) -> None:
        self._supervisor = supervisor
        self._admission = admission

    def collect(self) -> Iterable[Metric]:
        """Yield what there is to tell now."""
        yield GaugeMetricFamily(f"{_PREFIX}_requests_active", "Requests that run or wait", value=self._admission.n)
        yield CounterMetricFamily(
            f"{_PREFIX}_worker_restarts", "Workers that have died", value=self._supervisor.n_restarts
        )
        loaded = GaugeMetricFamily(f"{_PREFIX}_model_loaded", "Whether a model is ready", labels=["model"])
        waiting = GaugeMetricFamily(f"{_PREFIX}_model_waiting", "Requests that wait for a model", labels=["model"])
        memory = GaugeMetricFamily(f"{_PREFIX}_worker_memory_bytes", "Memory of a worker", labels=["model"])
        counters = {
            name: CounterMetricFamily(f"{_PREFIX}_engine_{name.removeprefix('n_')}", text, labels=["model"])
            for name, text in _COUNTERS.items()
        }
        gauges = {
            name: GaugeMetricFamily(f"{_PREFIX}_engine_{name.removeprefix('n_')}", text, labels=["model"])
            for name, text in _GAUGES.items()
        }
        for entry in self._supervisor.entries.values():
            loaded.add_metric([entry.name], float(entry.ready))
            waiting.add_metric([entry.name], entry.n_waiting)
            worker = entry.worker
            if worker is None:
                continue
            memory.add_metric([entry.name], worker.rss_bytes)
            for name, counter in counters.items():
                counter.add_metric([entry.name], worker.stats.get(name, 0.0))
            for name, gauge in gauges.items():
                gauge.add_metric([entry.name], worker.stats.get(name, 0.0))
        yield from (loaded, waiting, memory, *counters.values(), *gauges.values())

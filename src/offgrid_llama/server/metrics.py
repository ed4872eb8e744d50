"""Metrics: the server's numbers for Prometheus. They contain no text of requests or answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import time

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .admission import Admission
from .llama_server_metrics import LlamaServerMetrics
from .supervision.supervisor import Supervisor

__all__ = ["Metrics"]

_PREFIX = "offgrid_llama"
_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_INTER_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts", "prompt_tokens_cached": "Tokens of prompts from the prefix cache",
    "generated_tokens": "Tokens generated", "n_steps": "Steps of the engine", "step_seconds": "Time in these steps",
    "guessed_tokens": "Guesses of speculative decoding", "guessed_tokens_right": "Guesses that were right",
    "n_failed_steps": "Steps that failed",
}  # fmt: skip
_GAUGES = {
    "n_running": "Requests that generate", "n_waiting": "Requests in the engine's queue",
    "n_cached": "Idle sequences with a prefix to reuse", "cached_tokens": "Tokens in idle sequences",
    "shelved_bytes": "Bytes of prefixes in host memory", "disk_bytes": "Bytes of prefixes on disk",
}  # fmt: skip


class Metrics:
    """Counters of the server, and the workers' latest numbers.

    Attributes:
        requests: counter of requests, by path, model and status.
        tokens: counter of tokens, by model and kind.
        first_token: histogram of the time to the first token, by model.
        between_tokens: histogram of the time between two events of a stream, by model.
        llama_server: the same under llama-server's names.
        started: when the server has started, in seconds of Unix time.
    """

    def __init__(self, supervisor: Supervisor, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.llama_server = LlamaServerMetrics()
        self.started = time()
        self._supervisor = supervisor
        self.requests = Counter(
            f"{_PREFIX}_requests", "Requests, by path, model and status", ["path", "model", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter(
            f"{_PREFIX}_tokens", "Tokens of answered requests, by kind", ["model", "kind"], registry=self.registry
        )
        self.first_token = Histogram(
            f"{_PREFIX}_time_to_first_token_seconds", "From the request to its first token", ["model"],
            buckets=_FIRST_TOKEN_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.between_tokens = Histogram(
            f"{_PREFIX}_inter_token_seconds", "Between two events of a stream", ["model"], buckets=_INTER_TOKEN_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Workers(supervisor, admission))

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        for model in self._supervisor.models.values():
            if model.worker is not None:
                self.llama_server.take(model.name, model.worker.stats)
        return generate_latest(self.registry) + self.llama_server.text()


class _Workers(Collector):
    def __init__(self, supervisor: Supervisor, admission: Admission) -> None:
        self._supervisor = supervisor
        self._admission = admission

    def collect(self) -> Iterable[Metric]:
        """Yield the numbers of now; called for each scrape."""
        yield GaugeMetricFamily(f"{_PREFIX}_requests_active", "Requests that run or wait", value=self._admission.n)
        yield CounterMetricFamily(f"{_PREFIX}_worker_restarts", "Workers that died", value=self._supervisor.n_restarts)
        loaded = GaugeMetricFamily(f"{_PREFIX}_model_loaded", "Whether a model is ready", labels=["model"])
        waiting = GaugeMetricFamily(
            f"{_PREFIX}_model_waiting", "Requests that wait for a model to load", labels=["model"]
        )
        memory = GaugeMetricFamily(f"{_PREFIX}_worker_memory_bytes", "Memory of a worker", labels=["model"])
        of_engines = _families(CounterMetricFamily, _COUNTERS) | _families(GaugeMetricFamily, _GAUGES)
        for model in self._supervisor.models.values():
            loaded.add_metric([model.name], float(model.ready))
            waiting.add_metric([model.name], model.n_waiting)
            if model.worker is not None:
                memory.add_metric([model.name], model.worker.rss_bytes)
                for name, family in of_engines.items():
                    family.add_metric([model.name], model.worker.stats.get(name, 0.0))
        yield from (loaded, waiting, memory, *of_engines.values())


def _families(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily], texts: Mapping[str, str]
) -> dict[str, CounterMetricFamily | GaugeMetricFamily]:
    """Return the metrics of engines, by their names in EngineStats."""
    return {
        name: kind(f"{_PREFIX}_engine_{name.removeprefix('n_')}", text, labels=["model"])
        for name, text in texts.items()
    }

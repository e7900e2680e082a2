"""The Prometheus metrics of the engine: queue, batch, latencies, tokens, finished generations.

Invariant: each server has its own registry, and no label comes from a request, so the number of
series is fixed.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

ARRIVAL_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class EngineMetrics:
    """The metrics of one engine; every thread may update them.

    Args:
        num_waiting: returns the number of generations in the queue.
        num_running: returns the number of generations in the batch.
    """

    def __init__(self, num_waiting: Callable[[], int], num_running: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._gauge("slm_waiting", "Generations waiting for a batch slot", num_waiting)
        self._gauge("slm_running", "Generations in the batch", num_running)
        self.first_token_seconds = self._histogram(
            "slm_first_token_seconds", "From arrival to the first token", ARRIVAL_BUCKETS
        )
        self.between_tokens_seconds = self._histogram(
            "slm_between_tokens_seconds", "Between two tokens of a reply", TOKEN_BUCKETS
        )
        self.waited_seconds = self._histogram(
            "slm_waited_seconds", "From arrival to a batch slot", ARRIVAL_BUCKETS
        )
        self.batch_size = self._histogram("slm_batch_rows", "Sequences of a step", BATCH_BUCKETS)
        self.prompt_tokens = self._counter("slm_prompt_tokens", "Tokens of prompts")
        self.cached_tokens = self._counter(
            "slm_cached_tokens", "Tokens of prompts restored from the prefix cache"
        )
        self.completion_tokens = self._counter("slm_completion_tokens", "Tokens generated")
        self.finished = Counter(
            "slm_generations", "Generations, by how they ended", ["how"], registry=self.registry
        )
        for reason in ("stop", "length", "cancelled", "failed"):
            self.finished.labels(reason)

    def _gauge(self, name: str, description: str, read: Callable[[], int]) -> None:
        Gauge(name, description, registry=self.registry).set_function(read)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, description, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, description: str) -> Counter:
        return Counter(name, description, registry=self.registry)

    def render(self) -> bytes:
        """Returns the metrics of engine, HTTP layer and process in Prometheus' text format."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)

"""What Prometheus is told: the queue, the batch, time to first token, time between tokens, tokens and how they ended.

Invariant: a registry per server, and no label comes from a request, so the number of series is fixed.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The figures of one engine; safe to count with from any thread."""

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        gauges = (
            ("slm_waiting", "Generations that wait for a row", waiting),
            ("slm_running", "Generations in the batch", running),
        )
        for name, told, read in gauges:
            Gauge(name, told, registry=self.registry).set_function(read)
        self.first = self._histogram("slm_first_token_seconds", "From arrival to the first token", FIRST)
        self.between = self._histogram("slm_between_tokens_seconds", "Between two tokens of a reply", BETWEEN)
        self.waited = self._histogram("slm_waited_seconds", "From arrival to a row in the batch", FIRST)
        self.batch = self._histogram("slm_batch_rows", "Rows of a step", (1, 2, 4, 8, 16, 32, 64))
        self.read = self._counter("slm_prompt_tokens", "Tokens of prompts")
        self.cached = self._counter("slm_cached_tokens", "Tokens of prompts that had been computed before")
        self.written = self._counter("slm_completion_tokens", "Tokens written")
        self.ended = Counter("slm_generations", "Generations, by how they ended", ["how"], registry=self.registry)
        for how in ("stop", "length", "cancelled", "failed"):
            self.ended.labels(how)

    def _histogram(self, name: str, told: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, told, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, told: str) -> Counter:
        return Counter(name, told, registry=self.registry)

    def text(self) -> bytes:
        """Everything in Prometheus' text format: this engine's figures, the HTTP layer's and the process's."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)

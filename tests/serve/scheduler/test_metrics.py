"""serve/scheduler/metrics.py: gauges read their values when they are rendered."""

from slm_fn.serve.scheduler.metrics import EngineMetrics


def test_a_gauge_is_read_when_rendered():
    assert b"slm_waiting 3.0" in EngineMetrics(lambda: 3, lambda: 0).render()

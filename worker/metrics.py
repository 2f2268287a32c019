"""`GET /metrics` of a worker, on its health port: its slots, its leases and its engine, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from storage import metrics
from worker.engine.stats import EngineStats

if TYPE_CHECKING:
    from worker.runtime import Runtime

LEASES_LOST = Counter(
    "qwenq_leases_lost",
    "Answers that this worker gave up because another attempt had taken them over.",
    registry=metrics.REGISTRY,
)
FIRST_TOKEN = Histogram(
    "qwenq_first_token_seconds",
    "From a claim to the first new token of the answer.",
    buckets=metrics.SECONDS,
    registry=metrics.REGISTRY,
)
GAUGES = {
    "running": "Answers that the engine steps together.",
    "waiting": "Requests that wait for room in the engine.",
    "free_blocks": "Blocks of the KV cache that can be had.",
    "total_blocks": "Blocks of the KV cache.",
}
COUNTERS = {
    "steps": "Steps of the engine.",
    "preemptions": "Answers that gave up their blocks and were computed again.",
    "cached_tokens": "Tokens of prompts that were found in the prefix cache.",
    "prefill_tokens": "Tokens of prompts that were computed.",
    "decode_tokens": "Tokens of answers.",
    "host_seconds": "Time of all steps that was not the device's.",
    "device_seconds": "Time of all steps that was the device's.",
}


class Work(Collector):
    """What a worker is doing."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        """Look at the worker and at what its engine last told."""
        yield GaugeMetricFamily(
            "qwenq_worker_slots", "Jobs that this worker may run.", self._runtime.settings.concurrency
        )
        generator = self._runtime.generator
        if generator is None:
            return
        yield GaugeMetricFamily("qwenq_worker_busy", "Jobs that this worker runs.", self._runtime.busy)
        stats = generator.engine.stats
        yield GaugeMetricFamily(
            "qwenq_engine_up", "Whether the engine process is ready.", float(stats is not None)
        )
        # An engine that starts again counts from zero, as Prometheus expects of any process.
        now = stats or EngineStats()
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"qwenq_engine_{name}", text, getattr(now, name))
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"qwenq_engine_{name}", text, getattr(now, name))

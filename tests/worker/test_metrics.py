"""The page of a worker: its names are those of docs/operations.md, and an engine's counters are on it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from storage import metrics
from worker.engine.stats import EngineStats
from worker.health import HealthServer
from worker.metrics import Work
from worker.runtime import Runtime

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
# What the API alone has.
API = re.compile(r"qwenq_(http|queue_(jobs|oldest|running)|outbox|database)")


def documented() -> set[str]:
    """The metrics of the page's table, counters without their ending, as Prometheus' parser names families."""
    rows = PAGE.read_text().split("| metric | labels |")[1].split("\n\n")[0]
    return {name.removesuffix("_total") for name in re.findall(r"`(qwenq_\w+)`", rows)}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_names_are_those_of_the_page(runtime: Runtime) -> None:
    stats = EngineStats(running=3, free_blocks=5, total_blocks=9, cached_tokens=128, host_seconds=0.5)
    engine = SimpleNamespace(stats=stats)
    runtime.generator = cast(Any, SimpleNamespace(engine=engine))
    runtime.busy = 4
    work = Work(runtime)
    server = HealthServer(0, lambda: None, lambda: metrics.page([work]), lambda host: host == "127.0.0.1")
    try:
        answer = httpx.get(f"http://127.0.0.1:{server.port}/metrics", trust_env=False)
        engine.stats = None
        starting = httpx.get(f"http://127.0.0.1:{server.port}/metrics", trust_env=False).text
    finally:
        server.stop()
    assert (answer.status_code, answer.headers["content-type"]) == (200, metrics.CONTENT_TYPE)
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    ours = {name for name in families if name.startswith("qwenq_") and not API.match(name)}
    assert ours == {name for name in documented() if not API.match(name)}
    assert "process_resident_memory_bytes" in families
    shown = {name: family.samples[0].value for name, family in families.items() if family.samples}
    assert shown["qwenq_worker_busy"] == 4
    assert shown["qwenq_engine_up"] == 1
    for name, value in (("running", 3), ("cached_tokens", 128), ("host_seconds", 0.5), ("total_blocks", 9)):
        assert shown[f"qwenq_engine_{name}"] == value
    assert "qwenq_engine_up 0.0" in starting.splitlines()
    assert "qwenq_engine_total_blocks 0.0" in starting.splitlines()


def test_every_counter_of_the_engine_is_on_the_page() -> None:
    from worker.metrics import COUNTERS, GAUGES

    assert {*COUNTERS, *GAUGES} == set(EngineStats.__dataclass_fields__)
    assert replace(EngineStats(), steps=1).steps == 1


def test_others_may_not_read() -> None:
    server = HealthServer(0, lambda: None, lambda: b"secret", lambda _: False)
    try:
        answer = httpx.get(f"http://127.0.0.1:{server.port}/metrics", trust_env=False)
    finally:
        server.stop()
    assert answer.status_code == 403
    assert "QWENQ_METRICS_NETWORKS" in answer.json()["detail"]

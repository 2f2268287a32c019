"""`GET /metrics` of the API: its requests, and the queue as SQL has it, for Prometheus.

It needs no key, so it answers this machine and the networks that a setting names, and nobody through a proxy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import anyio.to_thread
from fastapi import APIRouter
from prometheus_client import Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from api.services import Held
from storage import metrics, queue
from storage.database import Database

REQUESTS = Histogram(
    "qwenq_http_request_seconds",
    "HTTP requests, up to the end of their answer; a stream ends with what it tells of.",
    ["method", "route", "status"],
    buckets=metrics.SECONDS,
    registry=metrics.REGISTRY,
)
# A proxy says by one of these that a request comes from somewhere else.
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-real-ip")
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS")

routes = APIRouter()


@routes.get("/metrics", include_in_schema=False)
async def read(request: Request, services: Held) -> Response:
    """Tell what this process has counted, and what waits."""
    host = request.client.host if request.client else ""
    passed_on = any(name in request.headers for name in FORWARDED)
    if passed_on or not metrics.may_read(host, services.settings.metrics_networks):
        return PlainTextResponse("QWENQ_METRICS_NETWORKS does not name your network.\n", 403)
    body = await anyio.to_thread.run_sync(
        metrics.page, [Waiting(services.database)], limiter=services.slow_calls
    )
    return Response(body, media_type=metrics.CONTENT_TYPE)


def observe(scope: Mapping[str, Any], status: int, seconds: float) -> None:
    """Count a request that has been answered. Labels are of a fixed set, whatever callers send."""
    route = getattr(scope.get("route"), "path", "unknown")
    method = scope["method"] if scope["method"] in METHODS else "other"
    REQUESTS.labels(method, route, str(status)).observe(seconds)


class Waiting(Collector):
    """The queue. It is the same in every API process: of several the greatest is as good as any."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        """Ask SQL."""
        try:
            with self._database.read() as session:
                backlog = queue.backlog(session)
        except SQLAlchemyError:
            yield GaugeMetricFamily("qwenq_database_up", "Whether SQL answers.", 0)
            return
        yield GaugeMetricFamily("qwenq_database_up", "Whether SQL answers.", 1)
        queued = GaugeMetricFamily(
            "qwenq_queue_jobs", "Jobs that wait, in all of the service.", labels=["tier"]
        )
        for tier, count in backlog.queued.items():
            queued.add_metric([tier], count)
        yield queued
        yield GaugeMetricFamily(
            "qwenq_queue_oldest_seconds",
            "How long the oldest job waits that only lacks a worker.",
            backlog.oldest_seconds,
        )
        yield GaugeMetricFamily(
            "qwenq_queue_running", "Jobs that run, in all of the service.", backlog.running
        )
        yield GaugeMetricFamily(
            "qwenq_outbox_messages",
            "Messages older than a second that the broker has not got.",
            backlog.outbox,
        )

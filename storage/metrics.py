"""What each process counts for Prometheus, and the page that tells it. docs/operations.md lists the names.

A change of state is counted where `storage` writes it, once its transaction is committed, whichever process did it. So
every process has its own part, and a sum over all of them is the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import event
from sqlalchemy.orm import Session

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a few milliseconds to the longest job there may be by default.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)

PENDING = "qwenq_counts"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter, which nobody asks for
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # memory, CPU time and open files of the process

ACCEPTED = Counter("qwenq_jobs_accepted", "Jobs taken into the queue.", ["tier"], registry=REGISTRY)
ENDED = Counter(
    "qwenq_jobs_ended", "Jobs that came to an end, by the end's status.", ["status"], registry=REGISTRY
)
CLAIMS = Counter("qwenq_claims", "Jobs that a worker took, by attempt.", ["attempt"], registry=REGISTRY)
WAITED = Histogram(
    "qwenq_queue_wait_seconds",
    "From a job's acceptance to its first claim.",
    buckets=SECONDS,
    registry=REGISTRY,
)
ATTEMPTS_LOST = Counter(
    "qwenq_attempts_lost",
    "Attempts whose worker was lost, found out by a sweep or by the worker.",
    registry=REGISTRY,
)
TRIES = Counter(
    "qwenq_webhook_tries", "Tries of webhooks, by what came of them.", ["outcome"], registry=REGISTRY
)
TRY_SECONDS = Histogram(
    "qwenq_webhook_try_seconds", "How long receivers took.", buckets=SECONDS, registry=REGISTRY
)


def on_commit(session: Session, count: Callable[[], None]) -> None:
    """Call `count` when the session's transaction is committed, and not at all when it is rolled back."""
    session.info.setdefault(PENDING, []).append(count)


@event.listens_for(Session, "after_commit")
def _count(session: Session) -> None:
    for count in session.info.pop(PENDING, ()):
        count()


@event.listens_for(Session, "after_rollback")
def _forget(session: Session) -> None:
    session.info.pop(PENDING, None)


def page(collectors: Iterable[Collector] = ()) -> bytes:
    """Return the page of this process: what is counted here, and what `collectors` find out now."""
    return generate_latest(_Page([REGISTRY, *collectors]))


def may_read(host: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Return whether a caller from this address gets the page: one of this machine, or of the networks."""
    try:
        address = ip_address(host)
    except ValueError:  # no address at all
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or any(address in network for network in networks)


class _Page(Collector):
    def __init__(self, parts: Sequence[Collector]) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        for part in self._parts:
            yield from part.collect()

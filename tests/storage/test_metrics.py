"""What is counted, and when: with the commit that made it true, once."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from storage import leases, metrics, terminal
from storage.database import Database
from tests.storage.factory import accept, answer, claim, project, sweep


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


COUNTED = (
    ("qwenq_jobs_accepted_total", {"tier": "default"}),
    ("qwenq_claims_total", {"attempt": "first"}),
    ("qwenq_claims_total", {"attempt": "later"}),
    ("qwenq_queue_wait_seconds_count", {}),
    ("qwenq_attempts_lost_total", {}),
    ("qwenq_jobs_ended_total", {"status": "completed"}),
    ("qwenq_jobs_ended_total", {"status": "cancelled"}),
)


def test_a_life_is_counted_once_and_only_if_it_was_committed(database: Database) -> None:
    before = [value(name, **labels) for name, labels in COUNTED]
    with database.begin() as session:
        owner = project(session)
        accept(session, owner)
    with database.begin() as session:
        claim(session)
        session.rollback()
    with database.begin() as session:
        assert claim(session, lease=-1.0) is not None
    with database.begin() as session:
        assert sweep(session).requeued == 1
    with database.begin() as session:
        job = claim(session)
        assert job is not None
        answer(session, job)
    with database.begin() as session:
        terminal.cancel(session, accept(session, owner))
    after = [value(name, **labels) for name, labels in COUNTED]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1, 1, 1, 1, 1, 1]
    with database.begin() as session:
        assert leases.claim(session, "w", 1.0, 3) is None  # an empty claim counts nothing
    assert value("qwenq_claims_total", attempt="first") == after[1]


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("10.2.2.3", False),
        ("fd00::1", False),
        ("", False),
        ("testclient", False),
    ],
)
def test_who_may_read(host: str, *, allowed: bool) -> None:
    assert metrics.may_read(host, [ip_network("10.1.0.0/16")]) is allowed

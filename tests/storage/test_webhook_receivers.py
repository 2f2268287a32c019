"""Of one receiver only so many tries run at a time, and what is turned away waits without noise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage import clock, outbox, webhook_endpoints, webhook_receivers, webhook_tries
from storage.database import Database
from storage.models import WebhookDelivery
from storage.webhook_tries import DeliveryJob, Try
from tests.storage.factory import accept, answer, claim, project

TAKEN = Try(delivered=True, status_code=200, error=None, excerpt="", duration_ms=1, retry_in=None)
LIMIT = 2


def owe(database: Database, count: int) -> list[str]:
    """Return the deliveries of `count` jobs to one endpoint, with nothing in the outbox."""
    with database.begin() as session:
        owner = project(session)
        webhook_endpoints.create(
            session, owner, name="e", url="https://e.example", event_types=["response.completed"], secret="s"
        )
        for _ in range(count):
            accept(session, owner)
            job = claim(session)
            assert job is not None
            answer(session, job)
        announced(session)
        return list(session.scalars(select(WebhookDelivery.id).order_by(WebhookDelivery.next_attempt_at)))


def announced(session: Session) -> list[str]:
    """Take what was announced to webhook workers since the last look."""
    rows = outbox.pending(session, 999)
    outbox.sent(session, rows)
    return [row.subject for row in rows if row.queue == "webhooks"]


def take(database: Database, delivery_id: str) -> DeliveryJob | None:
    with database.begin() as session:
        return webhook_tries.claim_delivery(session, delivery_id, 30, limit=LIMIT)


def sweep(database: Database) -> list[str]:
    with database.begin() as session:
        webhook_tries.sweep_deliveries(session, limit=LIMIT)
        return announced(session)


def test_the_limit_holds_and_each_end_lets_one_in(database: Database) -> None:
    ids = owe(database, 5)
    jobs = [take(database, delivery_id) for delivery_id in ids]
    assert [job is not None for job in jobs] == [True, True, False, False, False]
    assert jobs[0] is not None
    with database.begin() as session:
        webhook_tries.record(session, jobs[0], TAKEN)
        assert announced(session) == [ids[2]]
    assert take(database, ids[3]) is not None  # whoever comes first has the place
    assert take(database, ids[2]) is None


def test_what_waits_is_not_announced_while_its_receiver_is_busy(database: Database) -> None:
    ids = owe(database, 4)
    for delivery_id in ids:
        take(database, delivery_id)
    with database.begin() as session:  # long unheard, were it not in line
        session.execute(update(WebhookDelivery).values(knocked_at=clock.now() - 999))
    assert sweep(database) == []
    # Their workers were killed: both places are free, and two are called in.
    with database.begin() as session:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.lease_expires_at.is_not(None))
            .values(lease_expires_at=clock.now() - 1, knocked_at=clock.now())
        )
    assert sorted(sweep(database)) == sorted(ids[2:])
    assert sweep(database) == []


def test_claims_at_the_same_moment_do_not_exceed_it(database: Database) -> None:
    ids = owe(database, 8)
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda delivery_id: take(database, delivery_id), ids))
    assert sum(job is not None for job in jobs) == LIMIT
    with database.read() as session:
        waiting = session.scalars(select(WebhookDelivery.id).where(WebhookDelivery.waiting)).all()
    assert len(waiting) == 8 - LIMIT


def test_a_url_counts_by_host_within_its_project() -> None:
    one = webhook_receivers.of_url("p1", "https://Hooks.example:8443/a?secret")
    assert one == webhook_receivers.of_url("p1", "http://hooks.example/b")
    assert one != webhook_receivers.of_url("p2", "https://hooks.example/a")
    assert one != webhook_receivers.of_url("p1", "https://other.example/a")
    assert "secret" not in one

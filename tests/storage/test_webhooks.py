"""The life of a delivery: claimed with a lease, tried, recorded, tried again, given up."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import select, update

from storage import clock, outbox, webhook_endpoints, webhook_tries
from storage.database import Database
from storage.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from storage.webhook_tries import Try
from tests.storage.factory import accept, answer, claim, project

FAILED = Try(delivered=False, status_code=500, error=None, excerpt="no", duration_ms=5, retry_in=60.0)
GIVEN_UP = Try(delivered=False, status_code=None, error="timed out", excerpt="", duration_ms=5, retry_in=None)
TAKEN = Try(delivered=True, status_code=200, error=None, excerpt="ok", duration_ms=5, retry_in=None)


def owe(database: Database) -> tuple[str, str]:
    """Return an endpoint and the delivery that a finished job owes it."""
    with database.begin() as session:
        owner = project(session)
        endpoint = webhook_endpoints.create(
            session,
            owner,
            name="e",
            url="https://example.com",
            event_types=["response.completed"],
            secret="s1",
        )
        accept(session, owner)
        job = claim(session)
        assert job is not None
        answer(session, job)
        delivery = session.scalars(select(WebhookDelivery)).one()
        return endpoint.id, delivery.id


def make_due(database: Database) -> None:
    with database.begin() as session:
        session.execute(update(WebhookDelivery).values(next_attempt_at=clock.now() - 1))


def test_one_worker_at_a_time_and_one_id_over_all_tries(database: Database) -> None:
    _, delivery_id = owe(database)
    seen = set()
    for number in (1, 2, 3):
        with database.begin() as session:
            job = webhook_tries.claim_delivery(session, delivery_id, 30, limit=4)
            assert job is not None
            assert webhook_tries.claim_delivery(session, delivery_id, 30, limit=4) is None
            assert job.number == number
            seen.add((job.event_id, job.body))
        with database.begin() as session:
            webhook_tries.record(session, job, FAILED if number < 3 else TAKEN)
            assert webhook_tries.claim_delivery(session, delivery_id, 30, limit=4) is None  # not due, or done
        if number < 3:
            make_due(database)
    assert len(seen) == 1
    with database.read() as session:
        tries = session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.number)).all()
        assert [(one.number, one.status_code) for one in tries] == [(1, 500), (2, 500), (3, 200)]
        assert session.scalars(select(WebhookDelivery)).one().status == "delivered"


def test_a_retry_is_announced_when_it_falls_due(database: Database) -> None:
    _, delivery_id = owe(database)
    with database.begin() as session:
        job = webhook_tries.claim_delivery(session, delivery_id, 30, limit=4)
        assert job is not None
        webhook_tries.record(session, job, FAILED)
        outbox.sent(session, outbox.pending(session, 99))
        assert webhook_tries.sweep_deliveries(session, limit=4) == 0
        moment = clock.read(session)
        session.execute(update(WebhookDelivery).values(next_attempt_at=moment - 1, knocked_at=moment - 5))
        assert webhook_tries.sweep_deliveries(session, limit=4) == 1
        assert webhook_tries.sweep_deliveries(session, limit=4) == 0
        assert [row.subject for row in outbox.pending(session, 99)] == [delivery_id]


def test_a_worker_that_died_between_send_and_record_is_followed(database: Database) -> None:
    _, delivery_id = owe(database)
    with database.begin() as session:
        job = webhook_tries.claim_delivery(session, delivery_id, 30, limit=4)
        assert job is not None
        session.execute(update(WebhookDelivery).values(lease_expires_at=clock.now() - 1))
        again = webhook_tries.claim_delivery(session, delivery_id, 30, limit=4)
        assert again is not None
        assert (again.number, again.event_id) == (2, job.event_id)
        (lost,) = session.scalars(select(WebhookAttempt))
        assert (lost.number, lost.error) == (1, webhook_tries.LOST_TRY)
        # The first one was not dead, only slow: what it saw replaces the guess, and decides nothing.
        webhook_tries.record(session, job, TAKEN)
        session.refresh(lost)
        assert (lost.status_code, lost.error) == (200, None)
        assert session.scalars(select(WebhookDelivery)).one().status == "pending"


def test_giving_up_and_switching_off(database: Database) -> None:
    endpoint_id, delivery_id = owe(database)
    with database.begin() as session:
        job = webhook_tries.claim_delivery(session, delivery_id, 30, limit=4)
        assert job is not None
        webhook_tries.record(session, job, GIVEN_UP)
        endpoint = session.get_one(WebhookEndpoint, endpoint_id)
        assert session.scalars(select(WebhookDelivery)).one().status == "failed"
        assert endpoint.enabled
        endpoint.failing_since = clock.read(session) - webhook_tries.DISABLE_AFTER_SECONDS - 1
        session.flush()
        webhook_tries.record(session, replace(job, number=2), FAILED)
        assert not endpoint.enabled
        assert "five days" in str(endpoint.disabled_reason)


def test_410_switches_the_endpoint_off_at_once(database: Database) -> None:
    endpoint_id, delivery_id = owe(database)
    with database.begin() as session:
        job = webhook_tries.claim_delivery(session, delivery_id, 30, limit=4)
        assert job is not None
        webhook_tries.record(session, job, Try(False, 410, None, "", 1, None, gone=True))
        endpoint = session.get_one(WebhookEndpoint, endpoint_id)
        assert (endpoint.enabled, endpoint.disabled_reason) == (False, "the receiver answered 410 Gone")
        assert session.scalars(select(WebhookDelivery.failure)).all() == ["the receiver answered 410 Gone"]


def test_rotation_signs_with_both_secrets_until_the_old_one_expires(database: Database) -> None:
    endpoint_id, delivery_id = owe(database)
    with database.begin() as session:
        endpoint = session.get_one(WebhookEndpoint, endpoint_id)
        webhook_endpoints.rotate_secret(session, endpoint.project_id, endpoint_id, secret="s2", keep_old=True)
        job = webhook_tries.claim_delivery(session, delivery_id, 30, limit=4)
        assert job is not None
        assert job.secrets == ("s2", "s1")
        webhook_tries.record(session, job, FAILED)
        session.execute(update(WebhookEndpoint).values(previous_secret_expires_at=clock.now() - 1))
        session.execute(update(WebhookDelivery).values(next_attempt_at=clock.now() - 1))
        session.expire_all()
        job = webhook_tries.claim_delivery(session, delivery_id, 30, limit=4)
        assert job is not None
        assert job.secrets == ("s2",)


def test_a_deleted_endpoint_gets_nothing_more(database: Database) -> None:
    endpoint_id, delivery_id = owe(database)
    with database.begin() as session:
        owner = session.get_one(WebhookEndpoint, endpoint_id).project_id
        webhook_endpoints.delete_endpoint(session, owner, endpoint_id)
        session.expire_all()
        assert webhook_tries.claim_delivery(session, delivery_id, 30, limit=4) is None
    with database.read() as session:
        assert session.scalars(select(WebhookDelivery)).one().status == "failed"

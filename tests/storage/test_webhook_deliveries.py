"""Deliveries as their project sees and repeats them: lists, replay, recover, and an endpoint that is switched off."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage import clock, outbox, webhook_deliveries, webhook_endpoints, webhook_tries, webhooks
from storage.database import Database
from storage.errors import Conflict, NotFound
from storage.models import WebhookDelivery, WebhookEndpoint
from storage.webhook_deliveries import Wanted
from storage.webhook_tries import DeliveryJob, Try
from tests.storage.factory import accept, answer, claim, project

TAKEN = Try(delivered=True, status_code=200, error=None, excerpt="ok", duration_ms=5, retry_in=None)
FAILED = Try(delivered=False, status_code=500, error=None, excerpt="no", duration_ms=5, retry_in=600.0)
GIVEN_UP = Try(delivered=False, status_code=500, error=None, excerpt="no", duration_ms=5, retry_in=None)
GONE = Try(delivered=False, status_code=410, error=None, excerpt="", duration_ms=5, retry_in=None, gone=True)


class House:
    """A project with one endpoint, and the steps of its events' life."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.begin() as session:
            self.owner = project(session)
            self.endpoint = webhook_endpoints.create(
                session,
                self.owner,
                name="e",
                url="https://e.example",
                event_types=["response.completed"],
                secret="s",
            ).id

    def owe(self, **fields: object) -> str:
        """End a job; return its newest delivery."""
        with self.database.begin() as session:
            accept(session, self.owner, **fields)
            job = claim(session)
            assert job is not None
            answer(session, job)
            newest = select(WebhookDelivery.id).order_by(WebhookDelivery.created_at.desc()).limit(1)
            return session.scalars(newest).one()

    def take(self, delivery_id: str) -> DeliveryJob | None:
        with self.database.begin() as session:
            return webhook_tries.claim_delivery(session, delivery_id, 30, limit=9)

    def try_(self, delivery_id: str, outcome: Try) -> DeliveryJob:
        job = self.take(delivery_id)
        assert job is not None
        with self.database.begin() as session:
            webhook_tries.record(session, job, outcome)
        return job

    def row(self, delivery_id: str) -> WebhookDelivery:
        with self.database.read() as session:
            return session.get_one(WebhookDelivery, delivery_id)

    def replay(self, delivery_id: str) -> list[str]:
        """Replay; return what that announced."""
        with self.database.begin() as session:
            announced(session)
            webhook_deliveries.replay(session, self.owner, delivery_id)
            return announced(session)

    def recover(self, since: float = 0.0) -> int:
        return webhook_deliveries.recover(self.database, self.owner, self.endpoint, since)

    def switch(self, *, on: bool) -> None:
        with self.database.begin() as session:
            webhook_endpoints.change(session, self.owner, self.endpoint, enabled=on)


def announced(session: Session) -> list[str]:
    rows = outbox.pending(session, 999)
    outbox.sent(session, rows)
    return [row.subject for row in rows if row.queue == "webhooks"]


@pytest.fixture
def house(database: Database) -> House:
    return House(database)


@pytest.mark.parametrize("outcome", [TAKEN, GIVEN_UP, FAILED])
def test_replay_sends_the_same_event_again_with_a_schedule_of_its_own(house: House, outcome: Try) -> None:
    """Delivered, failed, or waiting for its next try."""
    delivery = house.owe()
    first = house.try_(delivery, outcome)
    assert house.take(delivery) is None
    assert house.replay(delivery) == [delivery]
    assert house.replay(delivery) == []  # it is due already
    second = house.take(delivery)
    assert second is not None
    assert (second.event_id, second.body) == (first.event_id, first.body)
    assert (second.number, second.round) == (2, 1)
    assert house.replay(delivery) == []  # it is on its way


def test_every_try_stays_on_record_over_replays(house: House) -> None:
    delivery = house.owe()
    house.try_(delivery, GIVEN_UP)
    house.replay(delivery)
    house.try_(delivery, TAKEN)
    with house.database.read() as session:
        found = webhook_deliveries.get(session, house.owner, delivery)
        tries = webhook_deliveries.attempts(session, found)
    assert [(one.number, one.status_code) for one in tries] == [(1, 500), (2, 200)]
    assert (found.row.status, found.row.failure) == ("delivered", None)


def test_recover_sends_what_was_not_taken_since_then(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_deliveries, "RECOVER_BATCH", 2)
    old, taken, *missed, put_off = (house.owe() for _ in range(8))
    for delivery in (old, *missed):
        house.try_(delivery, GIVEN_UP)
    house.try_(taken, TAKEN)
    house.try_(put_off, FAILED)
    with house.database.begin() as session:
        session.execute(
            update(WebhookDelivery).where(WebhookDelivery.id == old).values(created_at=clock.now() - 500)
        )
        since = clock.read(session) - 100
        webhooks.send_test(session, session.get_one(WebhookEndpoint, house.endpoint), "response.failed")
        session.execute(update(WebhookDelivery).where(WebhookDelivery.attempts == 0).values(status="failed"))
    assert house.recover(since) == len(missed) + 1
    assert house.recover(since) == 0  # all of it is pending now
    for delivery in (*missed, put_off):
        assert house.take(delivery) is not None
    assert house.take(old) is None
    assert house.take(taken) is None


def test_what_is_recovered_stands_in_line_and_is_called_in_one_by_one(house: House) -> None:
    deliveries = [house.owe() for _ in range(5)]
    for delivery in deliveries:
        house.try_(delivery, GIVEN_UP)
    with house.database.begin() as session:
        announced(session)
    house.recover()
    for expected in deliveries:
        with house.database.begin() as session:
            assert announced(session) == [expected]
        house.try_(expected, TAKEN)


def test_switching_off_fails_what_waits_and_recover_brings_it_all(house: House) -> None:
    waiting, running = house.owe(), house.owe()
    house.try_(waiting, FAILED)
    job = house.take(running)
    assert job is not None
    house.switch(on=False)
    assert (house.row(waiting).status, house.row(waiting).failure) == (
        "failed",
        "the endpoint is switched off",
    )
    assert house.row(running).status == "pending"  # somebody is at it
    with house.database.begin() as session:
        webhook_tries.record(session, job, FAILED)
    assert (house.row(running).status, house.row(running).next_attempt_at) == ("failed", None)
    missed = house.owe()
    assert (house.row(missed).status, house.row(missed).failure) == ("failed", "the endpoint is switched off")
    with pytest.raises(Conflict, match="switched off through the API"):
        house.replay(missed)
    with pytest.raises(Conflict, match='"enabled": true'):
        house.recover()
    house.switch(on=True)
    assert house.recover() == 3
    for delivery in (waiting, running, missed):
        house.try_(delivery, TAKEN)


def test_410_fails_all_that_waits_for_the_endpoint(house: House) -> None:
    other, gone = house.owe(), house.owe()
    house.try_(other, FAILED)
    house.try_(gone, GONE)
    assert house.row(other).status == house.row(gone).status == "failed"
    with house.database.read() as session:
        reason = session.get_one(WebhookEndpoint, house.endpoint).disabled_reason
    assert reason == "the receiver answered 410 Gone"


def test_a_success_or_another_url_ends_the_count_of_five_days(house: House) -> None:
    def failing_since() -> float | None:
        with house.database.read() as session:
            return session.get_one(WebhookEndpoint, house.endpoint).failing_since

    house.try_(house.owe(), FAILED)
    since = failing_since()
    house.try_(house.owe(), FAILED)
    assert since is not None
    assert failing_since() == since
    house.try_(house.owe(), TAKEN)
    assert failing_since() is None
    house.try_(house.owe(), FAILED)
    with house.database.begin() as session:
        webhook_endpoints.change(session, house.owner, house.endpoint, url="https://new.example")
    assert failing_since() is None


def test_an_event_of_the_moment_of_switching_off_fails_at_its_claim(house: House) -> None:
    delivery = house.owe()
    with house.database.begin() as session:
        session.execute(update(WebhookEndpoint).values(enabled=False))
    assert house.take(delivery) is None
    assert house.row(delivery).failure == "the endpoint is switched off"


def test_lists_filter_and_page_within_the_project(house: House) -> None:
    own = {"url": "https://own.example/x", "secret": "s", "events": ["response.completed"]}
    ids = [house.owe() for _ in range(3)]
    house.try_(ids[0], TAKEN)
    with house.database.begin() as session:
        stranger = project(session, "other")
        job = accept(session, house.owner, webhook=own)
        taken = claim(session)
        assert taken is not None
        answer(session, taken)
    with house.database.read() as session:

        def ids_of(
            who: str = house.owner, after: str | None = None, limit: int = 9, **wanted: str
        ) -> list[str]:
            page = webhook_deliveries.list_page(
                session, who, Wanted(**wanted), limit=limit, after=after, newest_first=False
            )
            return [found.row.id for found in page]

        every = ids_of()
        assert every[:3] == ids
        assert len(every) == 5
        assert ids_of(after=ids[0], limit=2) == ids[1:]
        assert ids_of(status="delivered") == [ids[0]]
        assert len(ids_of(subject=job.id)) == 2
        assert len(ids_of(endpoint_id=house.endpoint)) == 4
        assert ids_of(event_type="response.failed") == []
        assert ids_of(stranger) == []
        for call in (
            lambda: ids_of(stranger, endpoint_id=house.endpoint),
            lambda: ids_of(stranger, after=ids[0]),
            lambda: webhook_deliveries.get(session, stranger, ids[0]),
            lambda: webhook_deliveries.replay(session, stranger, ids[0]),
            lambda: webhook_deliveries.recover(house.database, stranger, house.endpoint, 0),
        ):
            with pytest.raises(NotFound):
                call()

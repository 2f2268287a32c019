"""Webhook tries end to end: a real row, a real receiver, the outcome in SQL."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network

import pytest
from openai import OpenAI
from sqlalchemy import select, update

from storage import clock, webhook_endpoints, webhook_secret, webhook_tries
from storage.crypto import SecretBox
from storage.database import Database
from storage.egress import EgressPolicy
from storage.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from tests.receiver import Receiver, receiving
from tests.storage.factory import accept, answer, claim, project
from worker import delivery
from worker.aside import Aside
from worker.runtime import Runtime
from worker.settings import WorkerSettings

SECRET = webhook_secret.new_secret()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def owe(runtime: Runtime, url: str, sealed: str | None = None) -> str:
    """End a job that has a webhook to `url`; return the delivery's id."""
    with runtime.database.begin() as session:
        owner = project(session)
        webhook_endpoints.create(
            session,
            owner,
            name="e",
            url=url,
            event_types=["response.completed"],
            secret=sealed or runtime.secrets.seal(SECRET),
        )
        accept(session, owner)
        job = claim(session)
        assert job is not None
        answer(session, job)
        return session.scalars(select(WebhookDelivery.id)).one()


def outcome(runtime: Runtime) -> tuple[WebhookDelivery, WebhookAttempt, float]:
    """The delivery, its newest try, and the database's time."""
    with runtime.database.read() as session:
        return (
            session.scalars(select(WebhookDelivery)).one(),
            session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.number.desc())).first(),  # type: ignore[return-value]
            clock.read(session),
        )


def test_delivered_once_and_the_sdk_accepts_it(runtime: Runtime, receiver: Receiver) -> None:
    delivery_id = owe(runtime, receiver.url)
    delivery.deliver(runtime, delivery_id)
    delivery.deliver(runtime, delivery_id)  # a duplicate knock
    (told,) = receiver.got
    event = OpenAI(api_key="x", webhook_secret=SECRET).webhooks.unwrap(told.body, told.headers)
    assert event.type == "response.completed"
    done, attempt, _ = outcome(runtime)
    assert (done.status, attempt.status_code, attempt.number) == ("delivered", 200, 1)


def test_failures_follow_the_schedule_and_end(runtime: Runtime, receiver: Receiver) -> None:
    delivery_id = owe(runtime, receiver.url)
    receiver.statuses[:] = [500, 404, 302]
    for delay in (60, 120, None):
        delivery.deliver(runtime, delivery_id)
        pending, attempt, moment = outcome(runtime)
        if delay is None:
            assert (pending.status, pending.next_attempt_at) == ("failed", None)
            assert attempt.error  # a redirect says so in words
            break
        assert pending.status == "pending"
        assert pending.next_attempt_at == pytest.approx(
            moment + delay, rel=0, abs=delay * delivery.JITTER + 2
        )
        with runtime.database.begin() as session:
            session.execute(update(WebhookDelivery).values(next_attempt_at=clock.now() - 1))
    assert len({told.headers["webhook-id"] for told in receiver.got}) == 1
    assert len(receiver.got) == 3


def test_a_private_address_is_never_connected_to(runtime: Runtime) -> None:
    delivery.deliver(runtime, owe(runtime, "http://10.0.0.1/hook"))
    _, attempt, _ = outcome(runtime)
    assert attempt.status_code is None
    assert "private" in str(attempt.error)


def test_a_secret_sealed_with_another_key_is_said_and_nothing_is_sent(
    runtime: Runtime, receiver: Receiver
) -> None:
    delivery.deliver(runtime, owe(runtime, receiver.url, sealed="gAAAAnonsense"))
    _, attempt, _ = outcome(runtime)
    assert "QWENQ_SECRET_KEY" in str(attempt.error)
    assert receiver.got == []


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("600", 600),
        ("0", 60),  # not sooner than the schedule says
        ("999999999", delivery.RETRY_AFTER_LIMIT),
        ("soon", 60),
    ],
)
def test_retry_after_is_obeyed_within_bounds(
    runtime: Runtime, receiver: Receiver, asked: str, seconds: float
) -> None:
    receiver.statuses[:] = [503]
    receiver.answer_headers["retry-after"] = asked
    delivery.deliver(runtime, owe(runtime, receiver.url))
    pending, _, moment = outcome(runtime)
    assert pending.next_attempt_at == pytest.approx(moment + seconds, rel=0, abs=60 * delivery.JITTER + 2)


def test_410_ends_it_and_switches_the_endpoint_off(runtime: Runtime, receiver: Receiver) -> None:
    receiver.statuses[:] = [410]
    delivery.deliver(runtime, owe(runtime, receiver.url))
    pending, attempt, _ = outcome(runtime)
    assert (pending.status, attempt.status_code) == ("failed", 410)
    with runtime.database.read() as session:
        assert not session.scalars(select(WebhookEndpoint)).one().enabled


def test_a_secret_rotated_while_deliveries_run_never_breaks_one(runtime: Runtime, receiver: Receiver) -> None:
    """Receivers that still verify with the old secret and those with the new one: both take every event."""
    owe(runtime, receiver.url)
    new = webhook_secret.new_secret()
    with runtime.database.begin() as session:
        endpoint = session.scalars(select(WebhookEndpoint)).one()
        for _ in range(11):
            accept(session, endpoint.project_id)
            job = claim(session)
            assert job is not None
            answer(session, job)
        ids = session.scalars(select(WebhookDelivery.id)).all()

    def rotate() -> None:
        with runtime.database.begin() as session:
            webhook_endpoints.rotate_secret(
                session,
                endpoint.project_id,
                endpoint.id,
                secret=runtime.secrets.seal(new),
                keep_old=True,
            )

    with ThreadPoolExecutor(4) as pool:
        tries = [pool.submit(delivery.deliver, runtime, one) for one in ids[:6]]
        rotated = pool.submit(rotate)
        tries += [pool.submit(delivery.deliver, runtime, one) for one in ids[6:]]
        for each in (*tries, rotated):
            each.result()
    for one in ids:  # those that found their receiver busy
        delivery.deliver(runtime, one)
    assert len(receiver.got) == len(ids)
    for told in receiver.got:
        OpenAI(api_key="x", webhook_secret=SECRET).webhooks.unwrap(told.body, told.headers)
    both = [told for told in receiver.got if " " in told.headers["webhook-signature"]]
    assert both
    for told in both:
        OpenAI(api_key="x", webhook_secret=new).webhooks.unwrap(told.body, told.headers)


def _deliver_in_a_process(delivery_id: str, key: str) -> None:
    """A webhook worker of its own, as far as one delivery needs it; settings are in the environment."""
    settings = WorkerSettings()
    runtime = Runtime(
        settings=settings,
        name="doomed",
        app=None,  # type: ignore[arg-type]
        database=Database(settings.database_url),
        redis=None,  # type: ignore[arg-type]
        publisher=None,  # type: ignore[arg-type]
        secrets=SecretBox(key),
        egress=EgressPolicy((ip_network("127.0.0.0/8"),)),
        generator=None,
        health=None,
        aside=Aside(),
    )
    delivery.deliver(runtime, delivery_id)


def test_a_worker_killed_between_send_and_record_is_followed_under_the_same_id(
    runtime: Runtime, receiver: Receiver
) -> None:
    delivery_id = owe(runtime, receiver.url)
    key = runtime.settings.secret_key.get_secret_value()
    worker = multiprocessing.get_context("spawn").Process(
        target=_deliver_in_a_process, args=(delivery_id, key)
    )
    # The receiver has read the event, and the worker will never know what it says to it.
    receiver.before_answer = lambda: os.kill(worker.pid or 0, signal.SIGKILL)
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    receiver.before_answer = None
    delivery.deliver(runtime, delivery_id)  # its lease still runs
    assert len(receiver.got) == 1
    with runtime.database.begin() as session:
        session.execute(
            update(WebhookDelivery).values(
                lease_expires_at=clock.now() - 1,
                knocked_at=clock.now() - webhook_tries.KNOCK_AGAIN_SECONDS - 1,
            )
        )
        assert webhook_tries.sweep_deliveries(session, limit=4) == 1
    delivery.deliver(runtime, delivery_id)
    first, second = receiver.got
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    with runtime.database.read() as session:
        tries = session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.number)).all()
    assert [(one.number, one.status_code, one.error) for one in tries] == [
        (1, None, webhook_tries.LOST_TRY),
        (2, 200, None),
    ]
    assert outcome(runtime)[0].status == "delivered"

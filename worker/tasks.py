"""The Celery tasks. A message is a knock on the door: what is done about it is decided in SQL."""

from __future__ import annotations

import contextlib

import structlog
from celery import shared_task
from kombu.exceptions import OperationalError as BrokerUnavailable
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from storage import broker, leases, outbox, publisher, retention, stream, webhook_tries
from storage.salvage import Salvage
from worker import claims, delivery, runtime
from worker.hints import HintTask

log = structlog.get_logger(__name__)


@shared_task(name=broker.TASKS["generate"], base=HintTask)
def generate(response_id: str) -> None:
    """There is work, `response_id` for one: run jobs until there is none left or the worker must go."""
    here = runtime.current()
    with here.hearing(), structlog.contextvars.bound_contextvars(knock=response_id):
        claims.run_all(here)


@shared_task(name=broker.TASKS["webhooks"], base=HintTask)
def deliver(delivery_id: str) -> None:
    """A webhook is due."""
    try:
        delivery.deliver(runtime.current(), delivery_id)
    except SQLAlchemyError as trouble:
        log.error("database unreachable, the webhook waits", delivery_id=delivery_id, cause=str(trouble))


@shared_task(name=broker.SWEEP_TASK, base=HintTask)
def sweep() -> None:
    """Take back lost jobs, announce what nobody heard, and send what the outbox still holds."""
    here = runtime.current()
    try:
        with here.database.begin() as session:
            swept = leases.sweep(session, here.settings.max_attempts, Salvage(here.redis))
        with here.database.begin() as session:
            due = webhook_tries.sweep_deliveries(session, limit=here.settings.webhook_receiver_limit)
        with contextlib.closing(publisher.Sender(here.app)) as sender:
            publisher.drain(here.database, sender, age=outbox.UNSENT_SECONDS)
        for response_id, attempt in swept.ended:
            stream.end(here.redis, response_id, attempt)
    except (SQLAlchemyError, RedisError, BrokerUnavailable) as trouble:
        log.warning("sweep cut short, the next one goes on", cause=str(trouble))
        return
    if swept.requeued or swept.ended or swept.announced or due:
        log.info(
            "swept",
            requeued=swept.requeued,
            ended=[response_id for response_id, _ in swept.ended],
            announced=swept.announced,
            webhooks_due=due,
        )


@shared_task(name=broker.PURGE_TASK, base=HintTask)
def purge() -> None:
    """Delete what has outlived its time."""
    here = runtime.current()
    try:
        gone = retention.purge(here.database, here.settings.keep)
    except SQLAlchemyError as trouble:
        log.warning("purge cut short, the next one goes on", cause=str(trouble))
        return
    if any(gone.values()):
        log.info("purged", **gone)

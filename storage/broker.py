"""The Celery producer that the API, the worker and the sweeper share: queues and the broker's settings.

Celery carries hints and nothing else. Each setting below answers a way in which it is known to lose, repeat or
hold up work; docs/decisions/0004-celery-on-redis.md tells the story of each.
"""

from __future__ import annotations

from celery import Celery
from kombu.entity import Queue

# Task names by queue. Producers send by name, so that the API imports nothing of the worker.
TASKS = {"generate": "qwenq.generate", "webhooks": "qwenq.deliver"}
SWEEP_TASK = "qwenq.sweep"
PURGE_TASK = "qwenq.purge"
MAINTENANCE_QUEUE = "maintenance"


def make_app(redis_url: str) -> Celery:
    """Return a Celery app on this broker. It connects lazily."""
    app = Celery("qwenq", broker=redis_url)
    app.conf.update(
        # A message that is lost with whoever took it is repeated by the sweeper. Kombu's own record of such messages,
        # two transactions each, would take a worker more time than the rest of a message.
        task_queues=[Queue(name, no_ack=True) for name in ("generate", "webhooks", MAINTENANCE_QUEUE)],
        task_default_queue="generate",
        task_create_missing_queues=False,
        # No results: the truth is in SQL, and Redis result keys are known to pile up.
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # A message is a knock, acknowledged before its task runs; the lease in SQL does what late
        # acknowledgement and the visibility timeout would do badly (redelivery of running work).
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        # Take a message only when a thread is free, so that none waits behind a long answer elsewhere.
        worker_disable_prefetch=True,
        task_serializer="json",
        accept_content=["json"],
        # A broker outage must not hold up a request: one quick try, then the outbox row waits for the sweeper.
        task_publish_retry=False,
        broker_connection_timeout=2,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        timezone="UTC",
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app

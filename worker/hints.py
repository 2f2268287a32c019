"""Messages of queues that keep no record of what they gave out (`storage.broker`): nothing is acknowledged.

Celery would ask Redis to forget each message, in a transaction of its own, although there is nothing to forget.
"""

from __future__ import annotations

from celery import Task
from celery.worker.request import Request


class HintRequest(Request):
    """A message that is a hint."""

    def acknowledge(self) -> None:
        """Count as acknowledged."""
        self.acknowledged = True


class HintTask(Task):
    """The base of all our tasks."""

    Request = HintRequest

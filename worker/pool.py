"""Celery's pool of threads, which tells the consumer when one of them is free.

While all threads are busy the consumer asks Redis for nothing, and nothing but a timer, a second away, made it look
whether that had changed. With as many callers as threads a job waited half a second for a free one.
"""

from __future__ import annotations

from typing import Any

from celery.concurrency.thread import TaskPool
from kombu.asynchronous import get_event_loop


class Pool(TaskPool):
    """As Celery's own."""

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - Celery has no types
        """Have a thread run a task. Once the task counts no more, the consumer's loop goes round."""
        result = super().on_apply(*args, **kwargs)
        result.f.add_done_callback(_wake)
        return result


def _wake(_done: object) -> None:
    loop = get_event_loop()  # None where Celery runs without one
    if loop is not None:
        loop.call_soon(lambda: None)  # may be called from any thread, and ends the loop's wait

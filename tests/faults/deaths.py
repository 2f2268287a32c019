"""Places in the product's code at which a process can be told to die: the ones that a random SIGKILL rarely hits.

A death is armed by a file of its name in `QWENQ_FAULTS_DEATHS`. The process that comes to the place and takes the
file away is gone in that moment, by its own SIGKILL: nothing is flushed, closed or told. A job whose metadata
say `poison` kills its worker without an order, each time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.outbox import Owed

VARIABLE = "QWENQ_FAULTS_DEATHS"

API_BEFORE_PUBLISH = "api-before-publish"
API_AFTER_PUBLISH = "api-after-publish"
WORKER_AFTER_END = "worker-after-end"
WEBHOOKS_AFTER_SEND = "webhooks-after-send"


def arm(directory: Path, name: str) -> Path:
    """Order the death; return the file, which is gone once it has been died."""
    order = directory / name
    order.touch()
    return order


def here(name: str) -> None:
    """Die if it was ordered."""
    order = Path(os.environ[VARIABLE]) / name
    try:
        order.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def in_api() -> None:
    """Between the commit of a job and its publication; between its publication and the caller's answer."""
    from storage import publisher

    owe = publisher.Publisher.owe

    def dying_owe(self: publisher.Publisher, rows: Sequence[Owed]) -> None:
        here(API_BEFORE_PUBLISH)
        if (Path(os.environ[VARIABLE]) / API_AFTER_PUBLISH).exists():
            publisher.send(rows, self._sender, [])
            here(API_AFTER_PUBLISH)
        owe(self, rows)

    publisher.Publisher.owe = dying_owe  # type: ignore[method-assign]


def in_worker() -> None:
    """Between the commit of an answer's end and everything that is told after it; at a token of a poison job."""
    from worker import generation, tail

    take = generation.Attempt._take

    def dying_take(self: generation.Attempt, event: Any) -> None:
        take(self, event)
        if "poison" in (self.response.request["metadata"] or {}):
            os.kill(os.getpid(), signal.SIGKILL)

    generation.Attempt._take = dying_take  # type: ignore[method-assign]

    end = tail.TailWriter.end

    def dying_end(self: tail.TailWriter, *of: Any, **options: Any) -> None:
        here(WORKER_AFTER_END)
        end(self, *of, **options)

    tail.TailWriter.end = dying_end  # type: ignore[method-assign]


def in_webhook_worker() -> None:
    """Between a receiver's answer and its record."""
    from worker import webhook_http

    post = webhook_http.post

    def dying_post(*args: Any, **options: Any) -> webhook_http.Attempt:
        attempt = post(*args, **options)
        here(WEBHOOKS_AFTER_SEND)
        return attempt

    webhook_http.post = dying_post

"""Sends the outbox to the broker from a thread of its own, so that a broker outage never holds up a request.

What this process commits is handed over in memory and goes out at once; a failed sending leaves the rows where they
are, and the thread's own slow look at the outbox, or the sweeper, tries again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import structlog
from celery import Celery
from kombu import Producer
from kombu.exceptions import OperationalError as BrokerUnavailable
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from storage import broker, outbox
from storage.database import Database
from storage.outbox import Owed

log = structlog.get_logger(__name__)

BATCH = 100
# A knock at the queue `generate` makes one thread of a worker run jobs until there are none: more knocks than threads
# wake nobody, and what waits for hours would fill the broker with them.
MOST_KNOCKS = 512
# A queue with so many is not looked at again for a moment: workers need longer to take them all.
FULL_SECONDS = 0.05
# How often the thread looks for rows that nobody handed to it.
TICK_SECONDS = 2.0
# What was sent is deleted so much later. A process that is killed meanwhile leaves it to be sent once more.
FORGET_SECONDS = 0.1


class Sender:
    """A connection to the broker, opened by the first message and kept until one fails."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._held = ExitStack()
        self._producer: Producer | None = None
        self._room = 0  # knocks that may follow before the queue's length is looked at again,
        self._look = 0.0  # and when that may be (time.monotonic)

    def send(self, queue: str, subject: str) -> None:
        """Tell `queue` about `subject`, unless enough knocks lie there; raises BrokerUnavailable or RedisError."""
        try:
            if self._producer is None:
                connection = self._held.enter_context(self._app.connection_for_write())
                self._producer = self._app.amqp.Producer(connection, auto_declare=False)
            if queue == "generate":
                if self._room <= 0 and time.monotonic() >= self._look:
                    self._room = MOST_KNOCKS - self._producer.channel.queue_declare(queue).message_count
                    self._look = time.monotonic() + FULL_SECONDS if self._room <= 0 else 0.0
                if self._room <= 0:
                    return
                self._room -= 1
            self._app.send_task(broker.TASKS[queue], args=[subject], queue=queue, producer=self._producer)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection back; the next message opens another."""
        self._producer = None
        self._held.close()


def drain(database: Database, sender: Sender, *, age: float = 0.0) -> int:
    """Send what the outbox has held for `age` seconds, and forget it; return how many messages went out.

    Two drains at once may send a message twice, which does no harm.

    Raises:
        BrokerUnavailable, RedisError: the broker did not take a message; what it took before is forgotten.
        SQLAlchemyError: the database is away.
    """
    total = 0
    while True:
        with database.read() as session:
            rows = outbox.pending(session, BATCH, age)
        taken: list[Owed] = []
        try:
            send(rows, sender, taken)
        finally:
            forget(database, taken)
        total += len(rows)
        if len(rows) < BATCH:
            return total


def send(rows: Sequence[Owed], sender: Sender, taken: list[Owed]) -> None:
    """Send these messages; those that the broker has taken are added to `taken`. Raises as `Sender.send` does."""
    for row in rows:
        sender.send(row.queue, row.subject)
        taken.append(row)


def forget(database: Database, taken: Sequence[Owed]) -> None:
    """Delete messages that the broker has taken. Raises SQLAlchemyError when the database is away."""
    if taken:
        with database.begin() as session:
            outbox.sent(session, taken)


class Publisher:
    """The sending thread of a process. `start` it once; `stop` ends it."""

    def __init__(self, database: Database, app: Celery) -> None:
        self._database = database
        self._sender = Sender(app)
        self._lock = threading.Lock()
        self._owed: list[Owed] = []
        self._taken: list[Owed] = []  # by the broker, and not deleted yet: one transaction for many
        self._forget_at = math.inf  # time.monotonic
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        """Begin to send what this process commits."""
        self._database.on_owed = self.owe
        self._thread.start()

    def owe(self, rows: Sequence[Owed]) -> None:
        """Send these, which are committed, at once."""
        with self._lock:
            self._owed += rows
        self._wake.set()

    def stop(self) -> None:
        """Send nothing more. Rows that are left wait for the next process."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        reachable, look = True, 0.0
        while not self._stopping:
            self._wake.wait(max(0.0, min(look, self._forget_at) - time.monotonic()))
            self._wake.clear()
            try:
                sent = self._send()
                now = time.monotonic()
                due = now >= look
                if due:
                    look = now + TICK_SECONDS  # before anything that may fail: the next try is later
                if due or now >= self._forget_at:
                    self._forget()
                if due:
                    sent += drain(self._database, self._sender, age=outbox.UNSENT_SECONDS)
            except (BrokerUnavailable, RedisError, OSError, SQLAlchemyError) as trouble:
                if reachable:  # say it once, not every two seconds of an outage
                    log.warning("broker or database unreachable, jobs stay queued in SQL", cause=str(trouble))
                reachable = False
            except Exception:
                log.exception("defect")
                time.sleep(TICK_SECONDS)
            else:
                if sent and not reachable:
                    log.info("broker reachable again, the outbox is sent")
                    reachable = True
        with suppress(SQLAlchemyError):
            self._forget()
        self._sender.close()

    def _send(self) -> int:
        with self._lock:
            owed, self._owed = self._owed, []
        send(owed, self._sender, self._taken)
        if self._taken:
            self._forget_at = min(self._forget_at, time.monotonic() + FORGET_SECONDS)
        return len(owed)

    def _forget(self) -> None:
        self._forget_at = math.inf
        forget(self._database, self._taken)
        self._taken.clear()

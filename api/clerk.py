"""What an API process does beside its requests, in a thread of its own: batches, and a tidy file store.

Several processes may do so at once: every step asks SQL first.
"""

from __future__ import annotations

import threading
import time

import structlog
from sqlalchemy.exc import SQLAlchemyError

from api.batch_driver import BatchDriver
from storage import files
from storage.blobs import Blobs
from storage.database import Database

log = structlog.get_logger(__name__)

TICK_SECONDS = 0.5
TIDY_SECONDS = 300.0
# Bytes that no row knows belong to nobody once no upload can still be about to write that row.
ORPHAN_SECONDS = 3600.0
BATCH = 500


class Clerk:
    """The thread. `start` it once; `stop` ends it."""

    def __init__(self, database: Database, blobs: Blobs, batches: BatchDriver) -> None:
        self._database = database
        self._blobs = blobs
        self._batches = batches
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._tidied = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="clerk", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def wake(self) -> None:
        """Look soon: a batch was made, or is to be cancelled."""
        self._wake.set()

    def stop(self) -> None:
        """Begin nothing more; a step that is under way ends."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        reachable = True
        while not self._stopping.is_set():
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()
            try:
                self._look()
            except (SQLAlchemyError, OSError) as trouble:
                if reachable:  # say it once, not twice a second of an outage
                    log.warning("database or file store unreachable, batches wait", cause=str(trouble))
                reachable = False
            except Exception:
                log.exception("defect")  # the batch is due again when its lease is over
            else:
                reachable = True

    def _look(self) -> None:
        self._batches.run_due(self._stopping)
        if time.monotonic() - self._tidied > TIDY_SECONDS:
            self._tidied = time.monotonic()
            tidy(self._database, self._blobs)


def tidy(database: Database, blobs: Blobs) -> int:
    """Remove bytes that no row knows: of deleted and expired files, and of uploads that a crash cut off.

    Returns:
        how many.

    Raises:
        SQLAlchemyError, OSError: the database or the store is away.
    """
    old = list(blobs.older_than(ORPHAN_SECONDS))
    gone = 0
    for first in range(0, len(old), BATCH):
        keys = old[first : first + BATCH]
        with database.read() as session:
            known = files.known(session, keys)
        for key in set(keys) - known:
            blobs.delete(key)
            gone += 1
    if gone:
        log.info("tidied the file store", removed=gone)
    return gone

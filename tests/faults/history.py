"""What happened, in the order in which it was seen: one JSON object a line, flushed at once.

Every record has `t` (unix seconds) and `kind`:

    call      a request of a client: op, key or id, status or error
    status    the status of a response as a client saw it change
    entry     an entry of a response's Redis Stream: attempt, first, tokens
    event     an event of a response's HTTP stream: reader, n (sequence number), type, delta
    webhook   a delivery that a receiver got: receiver, headers, body, answered
    fault     name, phase (begin, end), and what it hit
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class History:
    """Appends records to a file and keeps them. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self._lock = threading.Lock()
        self._file = path.open("w")

    def add(self, kind: str, **fields: Any) -> None:
        """Record something that happened now."""
        record = {"t": time.time(), "kind": kind, **fields}
        with self._lock:
            self.records.append(record)
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Record]:
    """Return the records of a run that is over."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def of_kind(records: Iterable[Record], *kinds: str) -> list[Record]:
    """Return those of the records that are of one of these kinds."""
    return [record for record in records if record["kind"] in kinds]


def fault_before(records: Iterable[Record], moment: float) -> Record | None:
    """Return the fault that was begun last before `moment`."""
    begun = [one for one in of_kind(records, "fault") if one["phase"] == "begin" and one["t"] <= moment]
    return begun[-1] if begun else None

"""A small run in which all went well, to be doctored by the tests of the invariants: one conversation of two turns."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook

from tests.faults.audit import Change, Delivery, Job, Said, Snapshot, Stretch
from tests.faults.history import Record

SECRET = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="
SECRETS = {"own": SECRET}
NOW = datetime.now(UTC).timestamp()


def good() -> tuple[list[Record], Snapshot]:
    """A history and a snapshot in which no invariant is broken."""
    history: list[Record] = []
    after = Snapshot()
    for turn, (response_id, attempts) in enumerate((("resp_a", 1), ("resp_b", 2))):
        after.jobs[response_id] = _job(response_id, turn, attempts)
        after.changes += _changes(response_id, attempts)
        after.deliveries.append(
            Delivery(response_id, f"evt_{response_id}", "response.completed", "delivered")
        )
        after.conversations.setdefault("conv", []).extend(
            Said(2 * turn + offset, response_id, role, "abcd")
            for offset, role in enumerate(("user", "assistant"))
        )
        history += _seen(response_id, turn)
    return history, after


def record(kind: str, **fields: Any) -> Record:
    """A record of the history."""
    return {"t": NOW, "kind": kind, **fields}


def _job(response_id: str, turn: int, attempts: int) -> Job:
    return Job(
        id=response_id,
        status="completed",
        attempt=attempts,
        conversation_id="conv",
        turn=turn,
        metadata={"talk": "0", "turn": str(turn), "key": f"key-{turn}"},
        usage={"input_tokens": 7, "output_tokens": 4, "total_tokens": 11},
        stretches=[
            Stretch(0, 1, [1, 2], ["a", "b"]),
            Stretch(2, attempts, [3, 4], ["c", ""], tail="d"),
        ],
        text="abcd",
        outputs=1,
    )


def _changes(response_id: str, attempts: int) -> list[Change]:
    found = [Change(NOW, "status", response_id, 0, "queued")]
    for attempt in range(1, attempts + 1):
        if attempt > 1:
            found.append(Change(NOW, "status", response_id, attempt - 1, "queued", "in_progress"))
        found.append(
            Change(NOW, "status", response_id, attempt, "in_progress", "queued", f"w{attempt}", attempt - 1)
        )
        found.append(Change(NOW, "chunk", response_id, attempt, "in_progress", "insert", current=attempt))
    found.append(Change(NOW, "status", response_id, attempts, "completed", "in_progress", current=attempts))
    return found


def _seen(response_id: str, turn: int) -> list[Record]:
    body = json.dumps({"type": "response.completed", "data": {"id": response_id}})
    event = f"evt_{response_id}"
    headers = {
        "webhook-id": event,
        "webhook-timestamp": str(int(NOW)),
        "webhook-signature": Webhook(SECRET).sign(event, datetime.fromtimestamp(int(NOW), UTC), body),
    }
    log = [
        ("response.created", None),
        ("response.output_text.delta", "ab"),
        ("response.output_text.delta", "cd"),
        ("response.completed", None),
    ]
    return [
        record("call", op="/v1/responses", key=f"key-{turn}", status=200, id=response_id),
        record("status", id=response_id, status="in_progress"),
        record("status", id=response_id, status="completed"),
        record("entry", id=response_id, attempt=1, first=0, tokens=[1, 2]),
        record("entry", id=response_id, attempt=2, first=2, tokens=[3, 4]),
        *(
            record("event", id=response_id, reader=reader, n=n, type=kind, delta=delta)
            for reader in ("one", "two")
            for n, (kind, delta) in enumerate(log)
        ),
        record("webhook", receiver="own", headers=headers, body=body, answered="error"),
        record("webhook", receiver="own", headers=headers, body=body, answered="ok"),
    ]

"""What must be true of the events that receivers were told."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

import time_machine
from standardwebhooks import Webhook, WebhookVerificationError

from tests.faults.audit import Snapshot
from tests.faults.breach import Breach
from tests.faults.history import Record, of_kind
from tests.faults.invariants_jobs import TERMINAL


def every_end_is_told(history: Sequence[Record], after: Snapshot, secrets: Mapping[str, str]) -> list[Breach]:
    """Every receiver took every terminal event, always under one `webhook-id` and one body, validly signed.

    `secrets` names the receivers and what each verifies with.
    """
    name, breaches = "every end is told", []
    got: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in of_kind(history, "webhook"):
        try:
            with time_machine.travel(record["t"], tick=False):  # a timestamp is judged when it arrives
                Webhook(secrets[record["receiver"]]).verify(record["body"], record["headers"])
        except WebhookVerificationError as refusal:
            words = f"{record['receiver']} cannot verify it: {refusal}"
            breaches.append(Breach(name, record["headers"].get("webhook-id", ""), words, record["t"]))
            continue
        got[record["receiver"], json.loads(record["body"])["data"]["id"]].append(record)
    ends = {c.response_id: c.at for c in after.changes if c.what == "status" and c.status in TERMINAL}
    for job in after.jobs.values():
        if job.status not in TERMINAL:
            continue
        names: set[str] = set()
        for receiver in secrets:
            tries = got.get((receiver, job.id), [])
            names |= {one["headers"]["webhook-id"] for one in tries}
            if len({one["body"] for one in tries}) > 1:
                breaches.append(Breach(name, job.id, f"{receiver} got different bodies", tries[-1]["t"]))
            if any(json.loads(one["body"])["type"] != f"response.{job.status}" for one in tries):
                breaches.append(Breach(name, job.id, f"{receiver} was told another end than {job.status}"))
            if not any(one["answered"] == "ok" for one in tries):
                words = f"{receiver} never took the event ({len(tries)} tries)"
                breaches.append(Breach(name, job.id, words, ends.get(job.id)))
        if len(names) > 1:
            breaches.append(Breach(name, job.id, f"several ids for one event: {sorted(names)}"))
    for delivery in after.deliveries:
        if delivery.status != "delivered":
            words = f"the delivery of {delivery.event_id} is {delivery.status}"
            breaches.append(Breach(name, delivery.response_id, words))
    return breaches

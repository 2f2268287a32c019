"""What must be true of jobs and conversations, from the clients' history and the database's audit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from tests.faults.audit import Change, Job, Snapshot
from tests.faults.breach import Breach
from tests.faults.history import Record, of_kind

TERMINAL = ("completed", "incomplete", "failed", "cancelled")
ANSWERED = ("completed", "incomplete")


def accepted(history: Sequence[Record]) -> dict[str, set[str]]:
    """Return the ids that callers were given, by the key of the job."""
    found: dict[str, set[str]] = defaultdict(set)
    for call in of_kind(history, "call"):
        if call["op"] == "/v1/responses" and "id" in call:
            found[call["key"]].add(call["id"])
    return dict(found)


def none_lost_none_twice(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """Every accepted job is there, and there is one for each key, however often its POST was repeated."""
    name, breaches = "none lost, none twice", []
    for key, ids in accepted(history).items():
        if len(ids) > 1:
            breaches.append(Breach(name, key, f"one key was answered with {sorted(ids)}"))
        breaches += [
            Breach(name, one, f"accepted (key {key}) and not in the database")
            for one in ids - after.jobs.keys()
        ]
    stored = Counter(job.metadata.get("key") for job in after.jobs.values())
    for key, count in stored.items():
        if key is not None and count > 1:
            breaches.append(Breach(name, key, f"{count} jobs were stored for one key"))
    return breaches


def every_job_ends(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """Every job has reached an end, the end it was asked for: an answer, or `cancelled` if its caller said so."""
    name, breaches = "every job ends", []
    asked_to_cancel = {call["id"] for call in of_kind(history, "call") if call["op"] == "cancel"}
    last = {change.response_id: change.at for change in after.changes if change.what == "status"}
    for job in after.jobs.values():
        at = last.get(job.id)
        if job.status not in TERMINAL:
            breaches.append(Breach(name, job.id, f"still {job.status} in attempt {job.attempt}", at))
        elif job.status == "failed":
            breaches.append(Breach(name, job.id, f"failed: {job.error}", at))
        elif job.status == "cancelled" and job.id not in asked_to_cancel:
            breaches.append(Breach(name, job.id, "cancelled, and nobody had asked for that", at))
    return breaches


def an_end_is_the_end(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """A terminal state is entered once and never left, in SQL and in what callers saw."""
    name, breaches = "a terminal state never changes", []
    ends: Counter[str] = Counter()
    for change in after.changes:
        if change.what != "status":
            continue
        ends[change.response_id] += change.status in TERMINAL
        if change.was in TERMINAL or ends[change.response_id] > 1:
            words = f"{change.was} became {change.status} in attempt {change.attempt}"
            breaches.append(Breach(name, change.response_id, words, change.at))
    seen: dict[str, str] = {}
    for record in of_kind(history, "status"):
        before = seen.get(record["id"])
        if before in TERMINAL or record["status"].startswith("HTTP"):
            words = f"a caller saw {record['status']} after {before}"
            breaches.append(Breach(name, record["id"], words, record["t"]))
        seen[record["id"]] = record["status"]
    for response_id, status in seen.items():
        job = after.jobs.get(response_id)
        if job is not None and status in TERMINAL and status != job.status:
            breaches.append(Breach(name, response_id, f"a caller saw {status}, SQL has {job.status}"))
    return breaches


def serial_conversations(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """A conversation is its answered turns in the order of their acceptance, none missing, none twice."""
    name, breaches = "a conversation is the serial order of its turns", []
    turns: dict[str, list[Job]] = defaultdict(list)
    for job in after.jobs.values():
        if job.conversation_id is not None:
            turns[job.conversation_id].append(job)
    for conversation, jobs in turns.items():
        jobs.sort(key=lambda job: job.turn or 0)
        sent = [int(job.metadata["turn"]) for job in jobs if "turn" in job.metadata]
        if sent != sorted(sent):
            breaches.append(Breach(name, conversation, f"turns sent in order were numbered {sent}"))
        should = [(job.id, role) for job in jobs if job.status in ANSWERED for role in ("user", "assistant")]
        said = after.conversations.get(conversation, [])
        found = [(item.response_id, item.role) for item in said]
        if found != should:
            wrong = next(
                (i for i, pair in enumerate(zip(found, should, strict=False)) if pair[0] != pair[1]),
                min(len(found), len(should)),
            )
            words = f"{len(found)} items where {len(should)} should be, the first wrong one at {wrong}"
            breaches.append(Breach(name, conversation, words))
        if [item.position for item in said] != list(range(len(said))):
            words = f"positions {[item.position for item in said]}"
            breaches.append(Breach(name, conversation, words))
    return breaches + _one_at_a_time(after, name)


def _one_at_a_time(after: Snapshot, name: str) -> list[Breach]:
    breaches = []
    running: dict[str, str] = {}  # conversation: response
    for change in after.changes:
        job = after.jobs.get(change.response_id)
        if change.what != "status" or job is None or job.conversation_id is None:
            continue
        other = running.get(job.conversation_id)
        if change.status == "in_progress":
            if other not in (None, job.id):
                words = f"{job.id} began while {other} was running"
                breaches.append(Breach(name, job.conversation_id, words, change.at))
            running[job.conversation_id] = job.id
        elif other == job.id:
            del running[job.conversation_id]
    return breaches


def no_stale_write(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """What is written carries the attempt that holds the job, and each claim takes the next attempt."""
    name, breaches = "no write of a stale attempt", []
    for change in after.changes:
        if change.what == "chunk" and change.attempt != change.current:
            words = f"attempt {change.attempt} wrote tokens of attempt {change.current}, {change.status}"
            breaches.append(Breach(name, change.response_id, words, change.at))
        elif change.what == "chunk" and change.was == "update":
            words = f"the chunk at {change.first_index} was written over by attempt {change.attempt}"
            breaches.append(Breach(name, change.response_id, words, change.at))
        elif change.what == "status" and change.status == "in_progress" and not _takes_the_next(change):
            words = f"claimed as attempt {change.attempt} after attempt {change.current}"
            breaches.append(Breach(name, change.response_id, words, change.at))
    return breaches


def _takes_the_next(claim: Change) -> bool:
    return claim.was == "queued" and claim.attempt == claim.current + 1


def nothing_leaks(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """No lease is left, and nothing that SQL owes the broker."""
    name = "nothing leaks"
    breaches = [
        Breach(name, job.id, f"{job.status} and still leased") for job in after.jobs.values() if job.leased
    ]
    if after.unsent:
        breaches.append(Breach(name, "outbox", f"{after.unsent} messages were never sent"))
    return breaches


def every_slot_is_free(after: Snapshot, workers: int, concurrency: int, since: float) -> list[Breach]:
    """At the end, with as many long jobs as there are slots, every worker runs as many as it may."""
    running: dict[str, str] = {}  # response: worker
    most: Counter[str] = Counter()
    for change in after.changes:
        if change.what != "status" or change.at < since:
            continue
        if change.status == "in_progress":
            running[change.response_id] = str(change.worker)
        else:
            running.pop(change.response_id, None)
        for worker, count in Counter(running.values()).items():
            most[worker] = max(most[worker], count)
    name = "no slot leaks"
    breaches = [
        Breach(name, worker, f"ran {count} jobs at once, it has {concurrency} slots")
        for worker, count in most.items()
        if count != concurrency
    ]
    if len(most) != workers:
        breaches.append(Breach(name, "workers", f"{len(most)} of {workers} workers took jobs"))
    return breaches

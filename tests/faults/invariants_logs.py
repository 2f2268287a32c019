"""What must be true of answers: their tokens in SQL, in Redis, and as callers read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from tests.faults.audit import Snapshot
from tests.faults.breach import Breach
from tests.faults.history import Record, of_kind
from tests.faults.invariants_jobs import ANSWERED, TERMINAL

# A reader may be set back by what was produced since the last checkpoint. It is due every 0.3 s; on a machine that
# is busy, and beside a database that restarts, it comes later.
SET_BACK_SECONDS = 2.0


def text_is_tokens(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """The stored stretches of an answer have no gap and no overlap, come from attempts in order, and are its text."""
    name, breaches = "joined tokens = stored text", []
    for job in after.jobs.values():
        position, attempt = 0, 0
        for stretch in job.stretches:
            if stretch.first != position or stretch.attempt < attempt:
                words = (
                    f"tokens up to {position} of attempt {attempt}, "
                    f"then from {stretch.first} of attempt {stretch.attempt}"
                )
                breaches.append(Breach(name, job.id, words, _end_of(job.id, after)))
                break
            if len(stretch.pieces) != len(stretch.token_ids):
                breaches.append(Breach(name, job.id, "tokens and pieces differ in number"))
            position, attempt = stretch.first + len(stretch.token_ids), stretch.attempt
        if job.status in ANSWERED:
            joined = "".join("".join(stretch.pieces) + stretch.tail for stretch in job.stretches)
            if job.outputs != 1:
                breaches.append(Breach(name, job.id, f"it has {job.outputs} output items"))
            elif joined != job.text:
                words = f"{len(joined)} characters in the log, {len(job.text or '')} in the item"
                breaches.append(Breach(name, job.id, words, _end_of(job.id, after)))
        elif job.outputs:
            breaches.append(Breach(name, job.id, f"{job.status}, and it has an output item"))
    return breaches


def usage_is_tokens(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """The usage that a caller is charged is what is stored."""
    name, breaches = "usage = tokens stored", []
    for job in after.jobs.values():
        if job.status not in ANSWERED:
            continue
        usage = job.usage or {}
        counted = len(job.tokens)
        if usage.get("output_tokens") != counted:
            words = f"usage says {usage.get('output_tokens')}, {counted} are stored"
            breaches.append(Breach(name, job.id, words, _end_of(job.id, after)))
        elif usage["input_tokens"] + counted != usage["total_tokens"]:
            breaches.append(Breach(name, job.id, f"the sum is wrong: {usage}"))
    return breaches


def live_tail_is_true(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """What the Redis Stream said of a position is what is stored there."""
    name, breaches = "what was shown live is stored", []
    for response_id, entries in _entries(history).items():
        job = after.jobs.get(response_id)
        if job is None or job.status not in ANSWERED:
            continue
        for entry in entries:
            stored = job.tokens[entry["first"] : entry["first"] + len(entry["tokens"])]
            if stored != entry["tokens"]:
                words = f"attempt {entry['attempt']} showed other tokens from {entry['first']} on"
                breaches.append(Breach(name, response_id, words, entry["t"]))
                break
    return breaches


def progress_is_kept(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """No attempt begins before what readers had seen a checkpoint's time before the attempt before it ended."""
    name, breaches = "a later attempt goes on with the answer", []
    for response_id, entries in _entries(history).items():
        for before, entry in pairwise(entries):
            if entry["attempt"] == before["attempt"]:
                continue
            own = [one for one in entries if one["attempt"] == before["attempt"]]
            old = [one for one in entries if one["attempt"] < before["attempt"]]
            # Of what came before that attempt, no more than it knew itself: if that was less, it was judged for it.
            until = _last_told(own) - SET_BACK_SECONDS
            safe = max(
                _told_until(own, until),
                min(_told_until(old, until), own[0]["first"] + len(own[0]["tokens"])),
            )
            # It may tell again what went before, where the stream had lost it: its first entry then holds all of that.
            known = entry["first"] + len(entry["tokens"])
            if known < safe:
                words = f"attempt {entry['attempt']} knew {known} tokens, readers were beyond {safe}"
                breaches.append(Breach(name, response_id, words, entry["t"]))
    return breaches


def _last_told(own: Sequence[Record]) -> float:
    """Return when an attempt told its last tokens. What comes in one go behind a pause was only read so late: Redis was
    away, and its worker may have died long before it was back."""
    end: float = own[-1]["t"]
    burst = next((one for one in own if end - one["t"] < 0.5), own[-1])
    earlier = [one["t"] for one in own if one["t"] < burst["t"]]
    return max(earlier) if earlier and burst["t"] - max(earlier) > SET_BACK_SECONDS else end


def _told_until(entries: Sequence[Record], moment: float) -> int:
    return max((one["first"] + len(one["tokens"]) for one in entries if one["t"] < moment), default=0)


def one_event_log(history: Sequence[Record], after: Snapshot) -> list[Breach]:
    """Every reader of a stream, wherever he resumed, got the same events, each once, up to one terminal event."""
    name, breaches = "one log without gap or repetition", []
    logs: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in of_kind(history, "event"):
        logs[record["id"]][record["reader"]].append(record)
    for response_id, readers in logs.items():
        job = after.jobs.get(response_id)
        reference: list[tuple[str, str | None]] | None = None
        for reader, events in readers.items():
            if events[-1]["n"] is None:
                breaches.append(
                    Breach(name, response_id, f"{reader} got {events[-1]['type']}", events[-1]["t"])
                )
                continue
            numbers = [event["n"] for event in events]
            wrong = next((i for i, n in enumerate(numbers) if n != i), None)
            if wrong is not None:
                words = f"{reader} got number {numbers[wrong]} where {wrong} was due"
                breaches.append(Breach(name, response_id, words, events[wrong]["t"]))
                continue
            log = [(event["type"], event["delta"]) for event in events]
            ends = [kind for kind, _ in log if kind.removeprefix("response.") in TERMINAL]
            if job is not None and job.status in TERMINAL and ends != [f"response.{job.status}"]:
                words = f"{reader} was told {ends or 'no end'}, it is {job.status}"
                breaches.append(Breach(name, response_id, words, events[-1]["t"]))
            text = "".join(delta or "" for kind, delta in log if kind == "response.output_text.delta")
            if job is not None and job.status in ANSWERED and text != job.text:
                words = f"the deltas that {reader} got are not the answer's text"
                breaches.append(Breach(name, response_id, words, events[-1]["t"]))
            reference = reference or log
            shared = min(len(reference), len(log))
            if log[:shared] != reference[:shared]:
                breaches.append(Breach(name, response_id, f"{reader} got other events than the others"))
    return breaches


def _entries(history: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in of_kind(history, "entry"):
        found[record["id"]].append(record)
    return found


def _end_of(response_id: str, after: Snapshot) -> float | None:
    return next((change.at for change in reversed(after.changes) if change.response_id == response_id), None)

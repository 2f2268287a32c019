"""Each invariant sees what it is for: a history in which all went well is doctored, and the right one complains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.audit import Change, Snapshot, Stretch
from tests.faults.check import check, clean_logs
from tests.faults.doctored import NOW, SECRETS, good, record
from tests.faults.history import Record, fault_before
from tests.faults.invariants_jobs import every_slot_is_free

Doctor = Callable[[list[Record], Snapshot], None]


def named(history: list[Record], after: Snapshot) -> set[str]:
    return {breach.invariant for breach in check(history, after, SECRETS)}


def test_a_good_run_has_no_breach() -> None:
    assert check(*good(), SECRETS) == []


def a_job_is_gone(history: list[Record], after: Snapshot) -> None:
    del after.jobs["resp_b"]
    after.conversations["conv"] = after.conversations["conv"][:2]


def a_key_made_two_jobs(history: list[Record], after: Snapshot) -> None:
    history.append(record("call", op="/v1/responses", key="key-0", status=200, id="resp_b"))


def a_post_was_stored_twice(history: list[Record], after: Snapshot) -> None:
    after.jobs["resp_b"].metadata["key"] = "key-0"


def a_job_never_ends(history: list[Record], after: Snapshot) -> None:
    after.jobs["resp_b"].status = "in_progress"


def a_job_failed(history: list[Record], after: Snapshot) -> None:
    after.jobs["resp_b"].status = "failed"


def nobody_asked_to_cancel(history: list[Record], after: Snapshot) -> None:
    after.jobs["resp_b"].status = "cancelled"


def an_end_was_left(history: list[Record], after: Snapshot) -> None:
    after.changes.append(Change(NOW, "status", "resp_a", 1, "queued", "completed"))


def it_ended_twice(history: list[Record], after: Snapshot) -> None:
    after.changes.append(Change(NOW, "status", "resp_a", 1, "completed", "in_progress", current=1))


def a_caller_saw_it_run_again(history: list[Record], after: Snapshot) -> None:
    history.append(record("status", id="resp_a", status="in_progress"))


def a_caller_saw_another_end(history: list[Record], after: Snapshot) -> None:
    history[:] = [one for one in history if not (one["kind"] == "status" and one["id"] == "resp_a")]
    history.append(record("status", id="resp_a", status="incomplete"))


def turns_changed_places(history: list[Record], after: Snapshot) -> None:
    said = after.conversations["conv"]
    said[0], said[2] = said[2], said[0]


def a_turn_is_missing(history: list[Record], after: Snapshot) -> None:
    after.conversations["conv"] = after.conversations["conv"][:2]


def a_turn_is_there_twice(history: list[Record], after: Snapshot) -> None:
    after.conversations["conv"] += after.conversations["conv"][2:]


def two_turns_ran_at_once(history: list[Record], after: Snapshot) -> None:
    ends = [i for i, change in enumerate(after.changes) if change.status == "completed"]
    after.changes.append(after.changes.pop(ends[0]))


def an_old_attempt_wrote(history: list[Record], after: Snapshot) -> None:
    after.changes.append(Change(NOW, "chunk", "resp_b", 1, "in_progress", "insert", current=2))


def a_chunk_was_written_over(history: list[Record], after: Snapshot) -> None:
    after.changes.append(Change(NOW, "chunk", "resp_b", 2, "in_progress", "update", current=2))


def an_attempt_number_was_used_again(history: list[Record], after: Snapshot) -> None:
    after.changes.append(Change(NOW, "status", "resp_b", 2, "in_progress", "queued", "w3", 2))


def a_lease_is_left(history: list[Record], after: Snapshot) -> None:
    after.jobs["resp_a"].leased = True


def a_message_is_left(history: list[Record], after: Snapshot) -> None:
    after.unsent = 1


def tokens_are_missing(history: list[Record], after: Snapshot) -> None:
    del after.jobs["resp_b"].stretches[0]


def tokens_overlap(history: list[Record], after: Snapshot) -> None:
    after.jobs["resp_b"].stretches.insert(1, Stretch(1, 1, [9], ["z"]))


def an_old_attempt_stands_behind_a_new_one(history: list[Record], after: Snapshot) -> None:
    first, second = after.jobs["resp_b"].stretches
    first.attempt, second.attempt = 2, 1


def the_item_has_another_text(history: list[Record], after: Snapshot) -> None:
    after.jobs["resp_b"].text = "abc"


def there_are_two_answers(history: list[Record], after: Snapshot) -> None:
    after.jobs["resp_b"].outputs = 2


def usage_is_wrong(history: list[Record], after: Snapshot) -> None:
    after.jobs["resp_b"].usage = {"input_tokens": 7, "output_tokens": 6, "total_tokens": 13}


def usage_does_not_add_up(history: list[Record], after: Snapshot) -> None:
    after.jobs["resp_b"].usage = {"input_tokens": 7, "output_tokens": 4, "total_tokens": 12}


def other_tokens_were_shown(history: list[Record], after: Snapshot) -> None:
    history.append(record("entry", id="resp_b", attempt=2, first=1, tokens=[9]))


def an_attempt_began_anew(history: list[Record], after: Snapshot) -> None:
    early = {"kind": "entry", "id": "resp_b", "attempt": 1}
    history[:] = [one for one in history if one["kind"] != "entry"]
    history += [
        {"t": NOW - 4, **early, "first": 0, "tokens": [1, 2]},
        {"t": NOW - 2.5, **early, "first": 2, "tokens": [3]},
        {"t": NOW - 1, **early, "first": 3, "tokens": [4]},
        record("entry", id="resp_b", attempt=2, first=0, tokens=[1]),
    ]


def a_third_attempt_lost_what_the_second_knew(history: list[Record], after: Snapshot) -> None:
    an_attempt_was_set_back(history, after)
    history[-1] = {**history[-1], "first": 0, "tokens": [1]}


def an_attempt_was_set_back(history: list[Record], after: Snapshot) -> None:
    """The second by less than a checkpoint's time, with Redis; the third goes on from what the second knew."""
    told = {"kind": "entry", "id": "resp_b"}
    history[:] = [one for one in history if one["kind"] != "entry"]
    history += [
        {"t": NOW - 12, **told, "attempt": 1, "first": 0, "tokens": [1, 2]},
        {"t": NOW - 11.5, **told, "attempt": 1, "first": 2, "tokens": [3]},
        {"t": NOW - 8, **told, "attempt": 2, "first": 0, "tokens": [1, 2]},
        {"t": NOW - 1, **told, "attempt": 3, "first": 2, "tokens": [3]},
    ]


def an_attempt_died_with_redis(history: list[Record], after: Snapshot) -> None:
    """What it told last was read when Redis was back, and Redis lost it before anybody had saved it."""
    told = {"kind": "entry", "id": "resp_b"}
    history[:] = [one for one in history if one["kind"] != "entry"]
    history += [
        {"t": NOW - 40, **told, "attempt": 1, "first": 0, "tokens": [1]},
        {"t": NOW - 30, **told, "attempt": 1, "first": 1, "tokens": [2]},
        {"t": NOW - 9, **told, "attempt": 1, "first": 2, "tokens": [3]},
        {"t": NOW - 1, **told, "attempt": 2, "first": 0, "tokens": [1]},
    ]


def events(history: list[Record], reader: str = "two") -> list[Record]:
    return [
        one for one in history if one["kind"] == "event" and one["reader"] == reader and one["id"] == "resp_b"
    ]


def an_event_is_missing(history: list[Record], after: Snapshot) -> None:
    history.remove(events(history)[1])


def an_event_came_twice(history: list[Record], after: Snapshot) -> None:
    history.insert(history.index(events(history)[1]), events(history)[1])


def a_reader_never_heard_the_end(history: list[Record], after: Snapshot) -> None:
    history.remove(events(history)[-1])


def a_reader_heard_another_end(history: list[Record], after: Snapshot) -> None:
    events(history)[-1]["type"] = "response.incomplete"


def a_reader_got_another_text(history: list[Record], after: Snapshot) -> None:
    events(history)[1]["delta"] = "xy"


def readers_got_other_pieces(history: list[Record], after: Snapshot) -> None:
    one, two = events(history)[1:3]
    one["delta"], two["delta"] = "abc", "d"


def a_reader_was_refused(history: list[Record], after: Snapshot) -> None:
    history.append(record("event", id="resp_b", reader="three", n=None, type="HTTP 404", delta=None))


def hooks(history: list[Record]) -> list[Record]:
    return [one for one in history if one["kind"] == "webhook" and "resp_b" in one["body"]]


def a_receiver_never_took_it(history: list[Record], after: Snapshot) -> None:
    history.remove(hooks(history)[1])


def an_event_has_two_ids(history: list[Record], after: Snapshot) -> None:
    other = next(one for one in history if one["kind"] == "webhook" and "resp_a" in one["body"])
    from datetime import UTC, datetime

    from standardwebhooks import Webhook

    mine = hooks(history)[0]
    sent = datetime.fromtimestamp(int(NOW), UTC)
    signature = Webhook(SECRETS["own"]).sign(other["headers"]["webhook-id"], sent, mine["body"])
    mine["headers"] = other["headers"] | {"webhook-signature": signature}


def a_signature_is_wrong(history: list[Record], after: Snapshot) -> None:
    hooks(history)[0]["body"] += " "


def a_delivery_is_open(history: list[Record], after: Snapshot) -> None:
    after.deliveries[0].status = "pending"


DOCTORED: dict[str, tuple[Doctor, ...]] = {
    "none lost, none twice": (a_job_is_gone, a_key_made_two_jobs, a_post_was_stored_twice),
    "every job ends": (a_job_never_ends, a_job_failed, nobody_asked_to_cancel),
    "a terminal state never changes": (
        an_end_was_left,
        it_ended_twice,
        a_caller_saw_it_run_again,
        a_caller_saw_another_end,
    ),
    "a conversation is the serial order of its turns": (
        turns_changed_places,
        a_turn_is_missing,
        a_turn_is_there_twice,
        two_turns_ran_at_once,
    ),
    "no write of a stale attempt": (
        an_old_attempt_wrote,
        a_chunk_was_written_over,
        an_attempt_number_was_used_again,
    ),
    "nothing leaks": (a_lease_is_left, a_message_is_left),
    "joined tokens = stored text": (
        tokens_are_missing,
        tokens_overlap,
        an_old_attempt_stands_behind_a_new_one,
        the_item_has_another_text,
        there_are_two_answers,
    ),
    "usage = tokens stored": (usage_is_wrong, usage_does_not_add_up),
    "what was shown live is stored": (other_tokens_were_shown,),
    "a later attempt goes on with the answer": (
        an_attempt_began_anew,
        a_third_attempt_lost_what_the_second_knew,
    ),
    "one log without gap or repetition": (
        an_event_is_missing,
        an_event_came_twice,
        a_reader_never_heard_the_end,
        a_reader_heard_another_end,
        a_reader_got_another_text,
        readers_got_other_pieces,
        a_reader_was_refused,
    ),
    "every end is told": (
        a_receiver_never_took_it,
        an_event_has_two_ids,
        a_signature_is_wrong,
        a_delivery_is_open,
    ),
}


@pytest.mark.parametrize(
    ("invariant", "doctor"),
    [
        pytest.param(name, doctor, id=doctor.__name__)
        for name, doctors in DOCTORED.items()
        for doctor in doctors
    ],
)
def test_a_broken_promise_is_seen(invariant: str, doctor: Doctor) -> None:
    history, after = good()
    doctor(history, after)
    assert invariant in named(history, after)


def test_a_slot_that_nobody_fills_is_a_leak() -> None:
    def running(*workers: str) -> Snapshot:
        return Snapshot(
            changes=[
                Change(NOW, "status", f"resp_{n}", 1, "in_progress", "queued", worker)
                for n, worker in enumerate(workers)
            ]
        )

    full = running("w1", "w1", "w2", "w2")
    assert every_slot_is_free(full, workers=2, concurrency=2, since=0) == []
    assert every_slot_is_free(running("w1", "w1", "w2"), workers=2, concurrency=2, since=0)
    assert every_slot_is_free(running("w1", "w1"), workers=2, concurrency=2, since=0)


@pytest.mark.parametrize("allowed", [an_attempt_was_set_back, an_attempt_died_with_redis])
def test_an_attempt_is_not_judged_by_what_was_lost_before_it(allowed: Doctor) -> None:
    history, after = good()
    allowed(history, after)
    assert "a later attempt goes on with the answer" not in named(history, after)


def test_a_defect_in_a_log_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text('{"event": "database unreachable", "cause": "OperationalError: no"}\n')
    assert clean_logs([log], {}) == []
    log.write_text('{"exception": "Traceback ...\\nTypeError: f() got an argument"}\n' * 2)
    (breach,) = clean_logs([log], {})
    assert breach.words == "2 times TypeError: f() got an argument"


def test_a_secret_in_a_log_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("all is well")
    assert clean_logs([log], {"the key": "sk-1"}) == []
    log.write_text("the key is sk-1")
    assert clean_logs([log], {"the key": "sk-1"})


def test_the_fault_before_a_moment_is_the_last_that_had_begun() -> None:
    faults = [
        {"t": moment, "kind": "fault", "phase": "begin", "name": name}
        for moment, name in ((1, "a"), (2, "b"))
    ]
    assert fault_before(faults, 0.5) is None
    assert fault_before(faults, 1.5) == faults[0]
    assert fault_before(faults, 9) == faults[1]

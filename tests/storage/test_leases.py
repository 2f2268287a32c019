"""Claims, fencing and the sweeper, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select, update

from storage import clock, conversations, history, leases, outbox, responses, terminal
from storage.database import Database
from storage.errors import LeaseLost
from storage.leases import Chunk
from storage.models import Response
from tests.storage.factory import accept, answer, claim, message, project, sweep


def expire(database: Database, response_id: str) -> None:
    """Let the lease have run out, without waiting for it."""
    with database.begin() as session:
        session.execute(
            update(Response).where(Response.id == response_id).values(lease_expires_at=clock.now() - 1)
        )


def test_oldest_job_first_and_each_once(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        first, second = accept(session, owner), accept(session, owner)
    with database.begin() as session:
        taken = [claim(session), claim(session), claim(session)]
    assert [job and job.id for job in taken] == [first.id, second.id, None]
    assert taken[0] is not None
    assert (taken[0].status, taken[0].attempt, taken[0].worker) == ("in_progress", 1, "w1")


def test_claims_side_by_side_never_share_a_job(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        accepted = {accept(session, owner).id for _ in range(40)}
    taken: list[str] = []

    def work() -> None:
        while True:
            with database.begin() as session:
                job = claim(session, threading.current_thread().name)
            if job is None:
                return
            taken.append(job.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 40
    assert set(taken) == accepted


def test_turns_of_a_conversation_run_one_at_a_time_in_order(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = conversations.create(session, owner, metadata={}, items=[])
        turns = [accept(session, owner, str(i), conversation_id=talk.id) for i in range(3)]
        other = accept(session, owner, "elsewhere")
    with database.begin() as session:
        assert [job and job.id for job in (claim(session), claim(session), claim(session))] == [
            turns[0].id,
            other.id,
            None,
        ]
    with database.begin() as session:
        outbox.sent(session, outbox.pending(session, 99))
        answer(session, session.get_one(Response, turns[0].id), "first")
    with database.begin() as session:
        assert [row.subject for row in outbox.pending(session, 99)] == [turns[1].id]
        job = claim(session)
        assert job is not None
        assert job.id == turns[1].id
        said = [item.body["content"][0]["text"] for item in history.load(session, job)]
    assert said == ["0", "first", "1"]


def test_a_continuation_waits_for_what_it_continues(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        first = accept(session, owner, "a")
        then = accept(session, owner, "b", previous_response_id=first.id)
        assert claim(session) is not None
        assert claim(session) is None
        answer(session, session.get_one(Response, first.id), "A")
        job = claim(session)
        assert job is not None
        assert job.id == then.id
        said = [item.body["content"][0]["text"] for item in history.load(session, job)]
    assert said == ["a", "A", "b"]


def test_the_history_has_the_tokens_that_an_answer_was_generated_as(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        conversation = conversations.create(
            session, owner, metadata={}, items=[message("given", "assistant")]
        )
        job = accept(session, owner, "a", conversation_id=conversation.id)
        claim(session)
        leases.add_chunk(session, job.id, 1, Chunk(0, [5, 6], ["A", ""]))
        answer(session, job, "AB")
        leases.add_chunk(session, job.id, 1, Chunk(2, [7], ["B"]))
        for then in (
            accept(session, owner, "b", conversation_id=conversation.id),
            accept(session, owner, "b", previous_response_id=job.id),
        ):
            said = history.load(session, then)
            assert [item.body["content"][0]["text"] for item in said] == ["given", "a", "AB", "b"]
            assert [item.token_ids for item in said] == [None, None, [5, 6, 7], None]


def test_a_continuation_of_a_failed_response_has_no_history(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        first = accept(session, owner)
        accept(session, owner, previous_response_id=first.id)
        job = claim(session)
        assert job is not None
        terminal.close_failed(session, job.id, 1, terminal.Failure("server_error", "engine_error", "no"))
        job = claim(session)
        assert job is not None
        with pytest.raises(history.HistoryGone, match="is failed"):
            history.load(session, job)


def test_checkpoints_add_up_and_a_stale_attempt_writes_nothing(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        accept(session, owner)
        job = claim(session)
        assert job is not None
        leases.renew(session, job.id, 1, 30, Chunk(0, [5, 6], ["a", ""]))
    expire(database, job.id)
    with database.begin() as session:
        assert sweep(session, 3).requeued == 1
        again = claim(session, "w2")
        assert again is not None
        assert (again.id, again.attempt, again.failures) == (job.id, 2, 1)
    for write in (
        lambda session: leases.renew(session, job.id, 1, 30, Chunk(2, [9], ["x"])),
        lambda session: leases.give_back(session, job.id, 1, None),
        lambda session: leases.lose(session, job.id, 1, 3, None),
        lambda session: terminal.close_answered(session, job.id, 1, terminal.Answer("x", {}, None)),
        lambda session: terminal.close_cancelled(session, job.id, 1),
    ):
        with pytest.raises(LeaseLost), database.begin() as session:
            write(session)
    with database.begin() as session:
        leases.renew(session, job.id, 2, 30, Chunk(2, [7], ["b"]))
        answer(session, again, "ab")
    with database.read() as session:
        known = leases.output(session, job.id)
        ended = responses.get(session, owner, job.id)
        assert (list(known.token_ids), list(known.pieces)) == ([5, 6, 7], ["a", "", "b"])
        assert ended.status == "completed"
    with pytest.raises(LeaseLost), database.begin() as session:
        answer(session, again, "again")


def test_attempts_are_bounded(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        job_id = accept(session, owner).id
    for lost in range(1, 4):
        with database.begin() as session:
            session.execute(update(Response).values(available_at=0.0))  # the back-off has passed
            job = claim(session)
            assert job is not None
        expire(database, job_id)
        with database.begin() as session:
            swept = sweep(session, 3)
        assert (swept.requeued, swept.ended) == ((1, ()) if lost < 3 else (0, ((job_id, 3),)))
    with database.read() as session:
        ended = responses.get(session, owner, job_id)
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error["type"] == "attempts_exhausted"


def test_back_off_grows_and_giving_back_costs_nothing(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        job_id = accept(session, owner).id
        claim(session)
        leases.give_back(session, job_id, 1, Chunk(0, [1], ["x"]))
        job = claim(session)
        assert job is not None
        assert (job.attempt, job.failures) == (2, 0)
        assert leases.lose(session, job_id, 2, 9, None) is False
        again = claim(session)  # the first loss is tried again at once
        assert again is not None
        assert leases.lose(session, job_id, 3, 9, None) is False
        assert claim(session) is None
        waits = session.get_one(Response, job_id, populate_existing=True).available_at - clock.read(session)
    assert 0.5 < waits <= 1.0


def test_a_job_that_nobody_heard_of_is_announced_again(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        job = accept(session, owner)
        outbox.sent(session, outbox.pending(session, 99))
        assert sweep(session, 3).announced == 0
        session.execute(update(Response).values(knocked_at=clock.now() - leases.KNOCK_AGAIN_SECONDS - 1))
        assert sweep(session, 3).announced == 1
        assert sweep(session, 3).announced == 0
        assert [row.subject for row in outbox.pending(session, 99)] == [job.id]


def test_a_job_that_was_given_back_is_announced_twice(database: Database) -> None:
    """The worker that leaves may take the first announcement with it; the next sweep does not wait for that."""
    with database.begin() as session:
        accept(session, project(session))
        job = claim(session)
        assert job is not None
        leases.give_back(session, job.id, 1, None)
        outbox.sent(session, outbox.pending(session, 99))
    with database.begin() as session:
        assert sweep(session, 3).announced == 1
        assert sweep(session, 3).announced == 0


def test_cancel_queued_running_and_finished(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        queued, running = accept(session, owner), accept(session, owner)
        assert terminal.cancel(session, queued).status == "cancelled"
        job = claim(session)
        assert job is not None
        assert job.id == running.id
        assert terminal.cancel(session, job).status == "in_progress"
        assert leases.renew(session, job.id, 1, 30, None) is True
        terminal.close_cancelled(session, job.id, 1)
        assert terminal.cancel(session, job).status == "cancelled"
        assert claim(session) is None


def test_a_cancelled_job_whose_worker_died_is_cancelled_by_the_sweeper(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        accept(session, owner)
        job = claim(session)
        assert job is not None
        terminal.cancel(session, job)
    expire(database, job.id)
    with database.begin() as session:
        assert sweep(session, 3).ended == ((job.id, 1),)
        status = session.scalar(select(Response.status))
    assert status == "cancelled"


def test_two_suspects_never_share_a_worker(database: Database) -> None:
    """Jobs on their last attempt: one of them kills workers, and must not take the other with it."""
    with database.begin() as session:
        owner = project(session)
        first, second = accept(session, owner), accept(session, owner)
        fresh = accept(session, owner)
        suspects = Response.id.in_([first.id, second.id])
        session.execute(update(Response).where(suspects).values(failures=2))
    with database.begin() as session:
        here = [claim(session, "w1"), claim(session, "w1"), claim(session, "w1")]
        assert [job and job.id for job in here] == [first.id, fresh.id, None]
        elsewhere = claim(session, "w2")
        assert elsewhere is not None
        assert elsewhere.id == second.id

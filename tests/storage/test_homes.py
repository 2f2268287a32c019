"""Conversations return to the worker that knows them: for a moment alone, under load a little ahead, never for ever."""

from __future__ import annotations

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from storage import clock, conversations, homes, leases, stream
from storage.database import Database
from storage.models import Response
from tests.storage.factory import accept, answer, claim, project


@pytest.fixture(autouse=True)
def _long_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "FRESH_SECONDS", 60.0)


def begun(session: Session, owner: str, worker: str) -> str:
    """A conversation whose first turn this worker has answered."""
    talk = conversations.create(session, owner, metadata={}, items=[]).id
    accept(session, owner, conversation_id=talk)
    job = claim(session, worker)
    assert job is not None
    assert job.conversation_id == talk
    answer(session, job)
    return talk


def pass_the_moment(session: Session) -> None:
    session.execute(update(Response).values(shared_at=clock.now() - 1))


def test_the_next_turn_waits_a_moment_for_its_worker(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = begun(session, owner, "a")
        turn = accept(session, owner, conversation_id=talk)
        assert claim(session, "b") is None
        found = homes.reserved(session, "b")
        assert found is not None
        assert found.home == "a"
        assert 50 < found.seconds <= 60
        assert homes.reserved(session, "a") is None
        taken = claim(session, "a")
        assert taken is not None
        assert taken.id == turn.id


def test_after_the_moment_anybody_takes_it_and_is_its_home_then(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = begun(session, owner, "a")
        accept(session, owner, conversation_id=talk)
        pass_the_moment(session)
        assert homes.reserved(session, "b") is None
        taken = claim(session, "b")
        assert taken is not None
        answer(session, taken)
        assert accept(session, owner, conversation_id=talk).home == "b"


def test_a_turn_and_a_continuation_that_wait_go_to_whoever_answers_what_they_wait_for(
    database: Database,
) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = begun(session, owner, "a")
        first = accept(session, owner, conversation_id=talk)
        second = accept(session, owner, conversation_id=talk)
        then = accept(session, owner, previous_response_id=first.id)
        pass_the_moment(session)
        job = claim(session, "b")
        assert job is not None
        assert job.id == first.id
        answer(session, job)
        assert claim(session, "a") is None
        taken = [claim(session, "b"), claim(session, "b")]
        assert {job.id for job in taken if job is not None} == {second.id, then.id}


def test_what_a_worker_gave_back_or_lost_is_anybodys(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = begun(session, owner, "a")
        accept(session, owner, conversation_id=talk)
        job = claim(session, "a")
        assert job is not None
        leases.give_back(session, job.id, job.attempt, None)
        job = claim(session, "b")
        assert job is not None
        leases.lose(session, job.id, job.attempt, 3, None)
        assert claim(session, "c") is not None


def test_under_load_a_worker_takes_its_own_a_little_ahead_of_others(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = begun(session, owner, "a")
        others = [accept(session, owner).id for _ in range(3)]
        mine = accept(session, owner, conversation_id=talk)
        far = begun_far(session, owner)
        pass_the_moment(session)
        order = []
        while (job := claim(session, "a")) is not None:
            order.append(job.id)
        assert order[0] == mine.id
        assert order[1:4] == others
        assert order.index(far) > 4, "too far behind the head to be taken first"


def begun_far(session: Session, owner: str) -> str:
    """A turn of worker a's behind many jobs of others."""
    for _ in range(int(homes.AHEAD * 4) + 4):
        accept(session, owner)
    last = accept(session, owner)
    session.execute(update(Response).where(Response.id == last.id).values(home="a", shared_at=clock.now()))
    return last.id


def test_nobody_starves_for_a_worker_that_always_has_work_of_its_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job without a home at the head, and a conversation that asks again as soon as it is answered."""
    monkeypatch.setattr(homes, "AHEAD_SECONDS", 0.2)
    with database.begin() as session:
        owner, chatter = project(session), project(session, "chatter")
        talk = begun(session, chatter, "a")
        accept(session, chatter, conversation_id=talk)
        patient = accept(session, owner)
        overtaken = 0
        while clock.read(session) < patient.created_at + 5:
            job = claim(session, "a")
            assert job is not None
            if job.id == patient.id:
                assert overtaken > 0
                return
            overtaken += 1
            answer(session, job)
            accept(session, chatter, conversation_id=talk)
    raise AssertionError("overtaken for ever")


def test_a_home_that_is_gone_is_noticed_and_forgotten(database: Database, broker_url: str) -> None:
    with stream.connect(broker_url) as redis, database.begin() as session:
        owner = project(session)
        talk = begun(session, owner, "gone")
        accept(session, owner, conversation_id=talk)
        assert not homes.call(redis, "gone")
        homes.forget(session, "gone")
        assert claim(session, "b") is not None
        listener = redis.pubsub()
        listener.subscribe(homes.channel("here"))
        assert listener.get_message(timeout=5) is not None
        assert homes.call(redis, "here")
        listener.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_claim_reads_no_backlog(database: Database) -> None:
    """With 20,000 jobs waiting, a worker finds its own by their index."""
    with database.begin() as session:
        owner = project(session)
        session.execute(
            text(
                "INSERT INTO responses (id, project_id, tier, rank, ready, request, status, created_at, available_at,"
                " max_run_seconds, knocked_at, attempt, failures, message_id, seed, home, shared_at) SELECT 'r' || i,"
                " :owner, 'default', i * 0.25, true, '{}', 'queued', 0, 0, 600, 0, 0, 0, 'm' || i, 1,"
                " CASE WHEN i % 3 = 0 THEN 'w' || i % 7 END, 0 FROM generate_series(1, 20000) AS i"
            ),
            {"owner": owner},
        )
        session.execute(text("ANALYZE responses"))
        job = claim(session, "w0")
        assert job is not None
        assert job.home in ("w0", None)
        plan = "\n".join(
            session.scalars(
                text(
                    "EXPLAIN SELECT id FROM responses WHERE status = 'queued' AND ready AND home = 'w0'"
                    " AND rank <= 5.0 ORDER BY rank, id LIMIT 1"
                )
            )
        )
        assert "ix_responses_homes" in plan

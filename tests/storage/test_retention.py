"""What has outlived its time goes, and nothing that something else stands on."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from storage import (
    clock,
    conversations,
    idempotency,
    leases,
    responses,
    retention,
    webhook_endpoints,
    webhook_tries,
)
from storage.database import Database
from storage.leases import Chunk
from storage.models import (
    Base,
    Conversation,
    IdempotencyKey,
    Item,
    OutputChunk,
    Response,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEvent,
)
from storage.retention import DAY_SECONDS, Keep
from tests.storage.factory import accept, answer, claim, message, project

KEEP = Keep(responses_days=10, conversations_days=10, webhooks_days=30)
FOR_EVER = Keep(None, None, 30)


def age(session: Session, column: Any, days: float, *where: Any) -> None:
    session.execute(update(column.class_).where(*where).values({column: clock.now() - days * DAY_SECONDS}))


def answered(session: Session, owner: str, **fields: Any) -> Response:
    accept(session, owner, **fields)
    job = claim(session)
    assert job is not None
    leases.renew(session, job.id, 1, 30, Chunk(0, [1], ["hi"]))
    return answer(session, job)


def count(database: Database, table: type[Base]) -> int:
    with database.read() as session:
        return int(session.scalar(select(func.count()).select_from(table)) or 0)


def test_old_responses_go_with_all_they_hold(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        old, young = answered(session, owner), answered(session, owner)
        waiting = accept(session, owner)
        age(session, Response.created_at, 99)
        age(session, Response.completed_at, 11, Response.id == old.id)
        age(session, Response.completed_at, 9, Response.id == young.id)
    assert retention.purge(database, FOR_EVER)["webhook_events"] == 0
    assert count(database, Response) == 3
    assert retention.purge(database, KEEP)["responses"] == 1
    with database.read() as session:
        assert set(session.scalars(select(Response.id))) == {young.id, waiting.id}
        assert set(session.scalars(select(Item.response_id))) == {young.id, waiting.id}
        assert set(session.scalars(select(OutputChunk.response_id))) == {young.id}


def test_what_stands_in_a_living_conversation_stays(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = conversations.create(session, owner, metadata={}, items=[message("before")])
        turn = answered(session, owner, conversation_id=talk.id)
        age(session, Response.completed_at, 11)
        age(session, Conversation.created_at, 99)
    gone = retention.purge(database, KEEP)
    assert (gone["responses"], gone["conversations"]) == (1, 0)
    with database.read() as session:
        items = conversations.list_items(session, owner, talk.id, limit=9, after=None, newest_first=False)
        assert [item.position for item in items] == [0, 1, 2]
        assert items[2].id == turn.message_id
    with database.begin() as session:
        age(session, Conversation.used_at, 11)
    assert retention.purge(database, KEEP)["conversations"] == 1
    assert count(database, Item) == 0


def test_a_conversation_is_as_old_as_its_last_use_and_gives_back_its_turns(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = conversations.create(session, owner, metadata={}, items=[message("before")])
        answered(session, owner, conversation_id=talk.id)
        age(session, Conversation.used_at, 99)
        accept(session, owner, conversation_id=talk.id)
    assert retention.purge(database, KEEP)["conversations"] == 0
    with database.begin() as session:
        job = claim(session)
        assert job is not None
        age(session, Conversation.used_at, 99)
    assert retention.purge(database, KEEP)["conversations"] == 0, "it has an open turn"
    with database.begin() as session:
        answer(session, job)
    assert retention.purge(database, KEEP)["conversations"] == 0
    with database.begin() as session:
        age(session, Conversation.used_at, 99)
    assert retention.purge(database, KEEP)["conversations"] == 1
    with database.read() as session:
        assert len(responses.items(session, job.id, output=False)) == 1
        assert set(session.scalars(select(Item.conversation_id))) == {None}


def test_a_chain_goes_as_a_whole_when_its_youngest_is_too_old(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        first = answered(session, owner)
        second = answered(session, owner, previous_response_id=first.id)
        third = answered(session, owner, previous_response_id=second.id)
        age(session, Response.completed_at, 99, Response.id != third.id)
    assert retention.purge(database, KEEP)["responses"] == 0
    with database.begin() as session:
        age(session, Response.completed_at, 99)
    assert retention.purge(database, KEEP)["responses"] == 3


def test_markers_and_keys_go_by_themselves(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        ids = [answered(session, owner).id for _ in range(2)]
        for each in ids:
            responses.delete_response(session, owner, each)
        for key in ("old", "new"):
            idempotency.remember(session, owner, key, "f", ids[0])
        age(session, Response.deleted_at, 3, Response.id == ids[0])
        age(session, IdempotencyKey.created_at, 1.1, IdempotencyKey.key == "old")
    gone = retention.purge(database, FOR_EVER)
    assert (gone["deleted_responses"], gone["idempotency_keys"]) == (1, 1)
    with database.read() as session:
        assert list(session.scalars(select(Response.id))) == [ids[1]]
        assert list(session.scalars(select(IdempotencyKey.key))) == ["new"]


def test_webhooks_go_when_nothing_of_their_event_is_under_way(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        for name in ("first", "second"):
            webhook_endpoints.create(
                session,
                owner,
                name=name,
                url="http://192.0.2.1/",
                event_types=["response.completed"],
                secret="sealed",
            )
        answered(session, owner)
        done, _ = session.scalars(select(WebhookDelivery.id)).all()
        job = webhook_tries.claim_delivery(session, done, 30, limit=4)
        assert job is not None
        webhook_tries.record(session, job, webhook_tries.Try(True, 200, None, "", 5, None))
        age(session, WebhookEvent.created_at, 31)
    gone = retention.purge(database, FOR_EVER)
    assert (gone["webhook_deliveries"], gone["webhook_events"]) == (1, 0)
    assert (count(database, WebhookAttempt), count(database, WebhookDelivery)) == (0, 1)
    with database.begin() as session:
        session.execute(update(WebhookDelivery).values(status="failed"))
    gone = retention.purge(database, FOR_EVER)
    assert (gone["webhook_deliveries"], gone["webhook_events"]) == (1, 1)


def test_two_at_once_delete_each_row_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    with database.begin() as session:
        owner = project(session)
        for _ in range(40):
            answered(session, owner)
        age(session, Response.completed_at, 99)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(retention.purge(database, KEEP)["responses"]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert sum(found) == 40 - count(database, Response)
    retention.purge(database, KEEP)  # what one found held by another is the next run's
    assert count(database, Response) == 0


def test_one_run_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "BATCHES", 2)
    with database.begin() as session:
        owner = project(session)
        for _ in range(7):
            answered(session, owner)
        age(session, Response.completed_at, 99)
    assert [retention.purge(database, KEEP)["responses"] for _ in range(3)] == [4, 3, 0]

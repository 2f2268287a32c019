"""What the end of a response writes, and what it leaves alone."""

from __future__ import annotations

import json

from sqlalchemy import func, select

from storage import conversations, responses, terminal, webhook_endpoints, webhooks
from storage.database import Database
from storage.models import WebhookDelivery, WebhookEvent
from tests.storage.factory import USAGE, accept, answer, claim, message, project

ALL = list(webhooks.RESPONSE_EVENTS)


def test_answer_usage_items_and_conversation_in_one_go(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = conversations.create(session, owner, metadata={}, items=[message("before")])
        job = accept(session, owner, "question", conversation_id=talk.id)
        taken = claim(session)
        assert taken is not None
        ended = answer(session, taken, "answer\x00🙂", cut=True)
    with database.read() as session:
        said = conversations.list_items(session, owner, talk.id, limit=9, after=None, newest_first=False)
        output = responses.items(session, job.id, output=True)
    assert (ended.status, ended.incomplete_reason, ended.usage) == ("incomplete", "max_output_tokens", USAGE)
    assert [item.body["content"][0]["text"] for item in said] == ["before", "question", "answer\x00🙂"]
    assert [item.id for item in output] == [job.message_id]


def test_a_failed_or_cancelled_turn_leaves_the_conversation_as_it_was(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = conversations.create(session, owner, metadata={}, items=[])
        for end in ("failed", "cancelled"):
            accept(session, owner, end, conversation_id=talk.id)
            job = claim(session)
            assert job is not None
            if end == "failed":
                terminal.close_failed(session, job.id, 1, terminal.Failure("server_error", "x", "y"))
            else:
                terminal.close_cancelled(session, job.id, 1)
        assert (
            conversations.list_items(session, owner, talk.id, limit=9, after=None, newest_first=False) == []
        )
        accept(session, owner, "goes on", conversation_id=talk.id)
        assert claim(session) is not None


def test_a_conversation_deleted_while_a_turn_runs(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = conversations.create(session, owner, metadata={}, items=[message("x")])
        accept(session, owner, conversation_id=talk.id)
        job = claim(session)
        assert job is not None
        conversations.delete_conversation(session, owner, talk.id)
        answer(session, job, "still answered")
        assert len(responses.items(session, job.id, output=True)) == 1


def test_who_is_told_of_what(database: Database) -> None:
    """Endpoints hear of background jobs by event type; a request's own webhook of what it asked for."""
    own = {"url": "https://example.com/own", "secret": "sealed", "events": ["response.completed"]}
    with database.begin() as session:
        owner, stranger = project(session), project(session, "other")
        makes = {"session": session, "url": "https://example.com/x", "secret": "sealed"}
        every = webhook_endpoints.create(project_id=owner, name="every", event_types=ALL, **makes)
        failures = webhook_endpoints.create(
            project_id=owner, name="failures", event_types=["response.failed"], **makes
        )
        webhook_endpoints.create(project_id=stranger, name="theirs", event_types=ALL, **makes)
        off = webhook_endpoints.create(project_id=owner, name="off", event_types=ALL, **makes)
        webhook_endpoints.change(session, owner, off.id, enabled=False)

        def told(**fields: object) -> list[str | None]:
            """End a new job as completed and return the receivers of its event."""
            job = accept(session, owner, **fields)
            taken = claim(session)
            assert taken is not None
            answer(session, taken)
            return [
                delivery.endpoint_id or delivery.url
                for delivery in session.scalars(
                    select(WebhookDelivery)
                    .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
                    .where(WebhookEvent.subject == job.id, WebhookDelivery.status == "pending")
                    .order_by(WebhookDelivery.id)
                )
            ]

        assert told() == [every.id]
        assert told(request={"background": False}) == []
        assert told(request={"background": False}, webhook=own) == [own["url"]]
        assert sorted(map(str, told(webhook=own))) == sorted([own["url"], every.id])
        assert told(webhook={**own, "events": ["response.failed"]}) == [every.id]
        assert told(webhook={"endpoint_id": every.id}) == [every.id]
        assert told(webhook={"endpoint_id": failures.id}) == []
        assert told(webhook={"endpoint_id": off.id}) == []
        # Not told, but on record: the endpoint's `recover` finds it.
        missed = session.scalars(select(WebhookDelivery).where(WebhookDelivery.endpoint_id == off.id)).all()
        assert {(one.status, one.failure) for one in missed} == {("failed", "the endpoint is switched off")}


def test_the_event_names_the_response_and_never_the_text(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        webhook = {"url": "https://example.com", "secret": "sealed", "events": ALL}
        job = accept(session, owner, "a secret question", webhook=webhook)
        taken = claim(session)
        assert taken is not None
        answer(session, taken, "a secret answer")
        event = session.scalars(select(WebhookEvent)).one()
        deliveries = session.scalar(select(func.count()).select_from(WebhookDelivery))
    body = json.loads(event.body)
    assert "secret" not in event.body
    assert (body["id"], body["object"], body["type"]) == (event.id, "event", "response.completed")
    assert body["data"] == {
        "id": job.id,
        "status": "completed",
        "conversation": None,
        "metadata": {"k": "v"},
        "attempt": 1,
        "usage": USAGE,
    }
    assert deliveries == 1

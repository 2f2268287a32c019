"""One job over HTTP with the official client: accept, look, list, cancel, delete."""

from __future__ import annotations

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from openai.types.responses.response_item_list import ResponseItemList
from redis import Redis

from api.settings import ApiSettings
from storage import stream
from storage.database import Database
from storage.models import Outbox
from storage.models import Response as Row
from tests.api.fake_worker import FakeWorker
from tests.api.strict import check

# Keys that OpenAI's answers and the Open Responses document have and the SDK's type has not.
EXTENSIONS = ("presence_penalty", "frequency_penalty", "store", "queue")
# Optional keys about things that a text model has not.
LEFT_OUT = (
    "image",
    "input_transformations",
    "moderation",
    "prompt",
    "prompt_cache_diagnostics",
    "prompt_cache_options",
    "tool_usage",
    "text.verbosity",
)
ANSWERED = (
    *LEFT_OUT,
    "output[].phase",
    "usage.input_tokens_details.cache_write_tokens_details",
)
ALWAYS = """
    id object created_at completed_at status model output error incomplete_details instructions metadata
    previous_response_id conversation parallel_tool_calls tool_choice tools temperature top_p top_logprobs
    presence_penalty frequency_penalty truncation text reasoning user usage max_output_tokens max_tool_calls
    store background service_tier safety_identifier prompt_cache_key
"""


def test_a_background_job_from_queued_to_completed(
    client: OpenAI, http: httpx.Client, worker: FakeWorker, settings: ApiSettings
) -> None:
    created = client.responses.create(
        model=settings.model_name,
        input="Hello?",
        instructions="Be brief.",
        background=True,
        metadata={"job": "7"},
        temperature=0.5,
        max_output_tokens=40,
        user="u1",
        safety_identifier="s1",
        prompt_cache_key="k1",
        parallel_tool_calls=False,
    )
    assert (created.status, created.output, created.background) == ("queued", [], True)
    queued = http.get(f"/v1/responses/{created.id}").json()
    assert queued.keys() >= set(ALWAYS.split())
    check(Response, queued, extensions=EXTENSIONS, left_out=LEFT_OUT)

    running = worker.claim()
    assert running is not None
    shown = http.get(f"/v1/responses/{created.id}").json()
    assert shown == {**queued, "status": "in_progress", "queue": None}

    worker.finish(running, "Hi there.")
    done = http.get(f"/v1/responses/{created.id}").json()
    check(Response, done, extensions=EXTENSIONS, left_out=ANSWERED)
    assert done["status"] == "completed"
    assert done["output"][0]["content"][0]["text"] == "Hi there."
    assert done["output"][0]["id"] == running.message_id
    assert done["completed_at"] >= done["created_at"]
    asked = {
        "instructions": "Be brief.",
        "metadata": {"job": "7"},
        "temperature": 0.5,
        "max_output_tokens": 40,
        "user": "u1",
        "safety_identifier": "s1",
        "prompt_cache_key": "k1",
        "parallel_tool_calls": False,
        "model": settings.model_name,
    }
    assert {key: done[key] for key in asked} == asked


def test_what_the_worker_reads(
    client: OpenAI, worker: FakeWorker, database: Database, settings: ApiSettings
) -> None:
    extra = {"top_k": 5, "repetition_penalty": 1.2, "seed": 11, "stop": "END"}
    client.responses.create(model="default", input="a", top_p=0.7, background=True, extra_body=extra)
    client.responses.create(input="b", background=True, extra_body={"stop": ["x", "y"]})
    first, second = worker.claim(), worker.claim()
    assert first is not None
    assert second is not None
    assert first.request == {
        "model": settings.model_name,
        "instructions": None,
        "background": True,
        "followed": True,
        "store": True,
        "metadata": {},
        "max_output_tokens": None,
        "temperature": None,
        "top_p": 0.7,
        "top_k": 5,
        "repetition_penalty": 1.2,
        "presence_penalty": None,
        "frequency_penalty": None,
        "top_logprobs": None,
        "logprobs": None,
        "seed": 11,
        "stop": ["END"],
        "truncation": "auto",
        "text": {"format": {"type": "text"}},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "max_tool_calls": None,
        "prompt_cache_key": None,
        "prompt_cache_retention": None,
        "safety_identifier": None,
        "user": None,
    }
    assert first.seed == 11
    assert second.request["stop"] == ["x", "y"]
    assert 0 <= second.seed < 2**53
    with database.read() as session:
        assert {row.subject for row in session.query(Outbox)} <= {first.id, second.id}


def test_a_failed_and_an_incomplete_response(client: OpenAI, http: httpx.Client, worker: FakeWorker) -> None:
    failed = client.responses.create(model="default", input="a", background=True)
    worker.fail()
    shown = http.get(f"/v1/responses/{failed.id}").json()
    check(Response, shown, extensions=EXTENSIONS, left_out=(*LEFT_OUT, "error.misalignment", "error.param"))
    assert shown["status"] == "failed"
    assert shown["error"] == {"code": "server_error", "message": "It was lost.", "type": "worker_lost"}

    cut = client.responses.create(model="default", input="a", background=True)
    worker.answer("Half a", incomplete=True)
    shown = http.get(f"/v1/responses/{cut.id}").json()
    check(Response, shown, extensions=EXTENSIONS, left_out=ANSWERED)
    assert shown["incomplete_details"] == {"reason": "max_output_tokens"}
    assert shown["output"][0]["status"] == "incomplete"


def test_input_items_are_listed_in_pages(client: OpenAI, http: httpx.Client) -> None:
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "One."}]},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    created = client.responses.create(model="default", input=turns, background=True)
    path = f"/v1/responses/{created.id}/input_items"
    shown = http.get(path, params={"order": "asc"}).json()
    check(ResponseItemList, shown, left_out=("data[].phase", "data[].content[].prompt_cache_breakpoint"))
    assert [item["role"] for item in shown["data"]] == ["developer", "user", "assistant", "user"]
    assert shown["has_more"] is False

    newest = client.responses.input_items.list(created.id, limit=3)
    assert [item.content[0].text for item in newest.data] == ["Three?", "Two.", "One."]
    assert newest.has_next_page()
    everything = [item.id for item in client.responses.input_items.list(created.id, limit=1, order="asc")]
    assert everything == [item["id"] for item in shown["data"]]
    assert http.get(path, params={"after": "msg_0"}).status_code == 404


def test_responses_are_listed_newest_first(
    client: OpenAI, http: httpx.Client, stranger: httpx.Client, worker: FakeWorker
) -> None:
    ids = [client.responses.create(model="default", input=str(n), background=True).id for n in range(3)]
    worker.answer("first")
    page = http.get("/v1/responses", params={"limit": 2}).json()
    assert [each["id"] for each in page["data"]] == [ids[2], ids[1]]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[1], True)
    rest = http.get("/v1/responses", params={"limit": 2, "after": ids[1]}).json()
    assert [each["id"] for each in rest["data"]] == [ids[0]]
    assert rest["data"][0]["output"][0]["content"][0]["text"] == "first"
    assert rest["has_more"] is False
    oldest = http.get("/v1/responses", params={"order": "asc", "limit": 1}).json()
    assert oldest["data"][0]["id"] == ids[0]
    assert stranger.get("/v1/responses").json()["data"] == []


def test_another_project_sees_nothing(client: OpenAI, stranger: httpx.Client) -> None:
    mine = client.responses.create(model="default", input="a", background=True).id
    for method, path in (
        ("GET", f"/v1/responses/{mine}"),
        ("GET", f"/v1/responses/{mine}/input_items"),
        ("POST", f"/v1/responses/{mine}/cancel"),
        ("DELETE", f"/v1/responses/{mine}"),
        ("GET", f"/v1/responses?after={mine}"),
    ):
        assert stranger.request(method, path).status_code == 404, (method, path)
    continued = stranger.post("/v1/responses", json={"input": "b", "previous_response_id": mine})
    assert continued.status_code == 404
    assert continued.json()["error"]["param"] == "previous_response_id"
    assert client.responses.retrieve(mine).status == "queued"


def test_cancel_is_for_background_jobs_and_may_be_repeated(
    client: OpenAI, worker: FakeWorker, redis: Redis
) -> None:
    queued = client.responses.create(model="default", input="a", background=True)
    assert client.responses.cancel(queued.id).status == "cancelled"
    assert client.responses.cancel(queued.id).status == "cancelled"
    assert stream.tail(redis, queued.id).ended

    running = client.responses.create(model="default", input="b", background=True)
    claimed = worker.claim()
    assert claimed is not None
    assert client.responses.cancel(running.id).status == "in_progress"  # the worker ends it
    assert client.responses.cancel(running.id).status == "in_progress"

    worker.finish(claimed, "done anyway")
    finished = client.responses.cancel(running.id)
    assert (finished.status, finished.output_text) == ("completed", "done anyway")

    with worker.at_work():
        foreground = client.responses.create(model="default", input="c")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(foreground.id)


def test_delete_takes_finished_responses_and_all_they_hold(
    client: OpenAI, http: httpx.Client, worker: FakeWorker, redis: Redis, database: Database
) -> None:
    created = client.responses.create(model="default", input="a secret", background=True)
    with pytest.raises(openai.ConflictError, match="Cancel it"):
        client.responses.delete(created.id)
    worker.answer()
    deleted = http.delete(f"/v1/responses/{created.id}")
    assert deleted.json() == {"id": created.id, "object": "response", "deleted": True}
    assert http.delete(f"/v1/responses/{created.id}").status_code == 404
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)
    assert redis.exists(stream.key(created.id)) == 0
    with database.read() as session:
        row = session.get(Row, created.id)
        assert row is not None
        assert "a secret" not in str(row.request)


def test_conversation_and_previous_response_exclude_each_other(
    client: OpenAI, http: httpx.Client, worker: FakeWorker
) -> None:
    conversation = client.conversations.create()
    first = client.responses.create(model="default", input="a", conversation=conversation.id, background=True)
    assert first.conversation is not None
    assert first.conversation.id == conversation.id
    as_object = client.responses.create(
        model="default", input="b", conversation={"id": conversation.id}, background=True
    )
    assert as_object.conversation == first.conversation
    worker.answer()
    continued = client.responses.create(
        model="default", input="c", previous_response_id=first.id, background=True
    )
    assert continued.previous_response_id == first.id
    both = {"input": "d", "conversation": conversation.id, "previous_response_id": first.id}
    refused = http.post("/v1/responses", json=both)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "previous_response_id"
    unknown = http.post("/v1/responses", json={"input": "d", "conversation": "conv_0"})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["param"] == "conversation"


def test_a_failed_response_cannot_be_continued(client: OpenAI, worker: FakeWorker) -> None:
    failed = client.responses.create(model="default", input="a", background=True)
    worker.fail()
    with pytest.raises(openai.ConflictError, match="failed"):
        client.responses.create(model="default", input="b", previous_response_id=failed.id, background=True)

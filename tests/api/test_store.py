"""`store: false`: the answer goes to whoever asked for it, and to nobody else."""

from __future__ import annotations

import httpx
from openai import OpenAI

from storage.database import Database
from storage.models import Response
from tests.api.fake_worker import FakeWorker


def test_an_answer_that_is_not_stored_is_found_by_nobody(
    client: OpenAI, http: httpx.Client, worker: FakeWorker, database: Database
) -> None:
    with worker.at_work("Hello!"):
        answer = client.responses.create(model="default", input="a", store=False)
        key = {"idempotency-key": "k"}
        again = [
            client.responses.create(model="default", input="a", store=False, extra_headers=key)
            for _ in range(2)
        ]
        events = list(client.responses.create(model="default", input="a", store=False, stream=True))
    assert answer.output_text == "Hello!"
    assert again[0] == again[1]
    streamed = events[-1].response  # type: ignore[union-attr]
    assert streamed.output_text == "Hello!"
    for found in (answer, again[0], streamed):
        assert found.model_extra is not None
        assert found.model_extra["store"] is False
        path = f"/v1/responses/{found.id}"
        for verb, place in (
            ("GET", path),
            ("GET", f"{path}?stream=true"),
            ("GET", f"{path}/input_items"),
            ("POST", f"{path}/cancel"),
            ("DELETE", path),
        ):
            assert http.request(verb, place).status_code == 404, (verb, place)
        continued = http.post("/v1/responses", json={"input": "b", "previous_response_id": found.id})
        assert continued.json()["error"]["param"] == "previous_response_id"
    assert http.get("/v1/responses").json()["data"] == []
    with database.read() as session:
        assert session.get_one(Response, answer.id).stored is False


def test_a_turn_that_is_not_stored_is_part_of_its_conversation(client: OpenAI, worker: FakeWorker) -> None:
    conversation = client.conversations.create()
    with worker.at_work("Hello!"):
        client.responses.create(model="default", input="a", store=False, conversation=conversation.id)
    items = client.conversations.items.list(conversation.id, order="asc").data
    assert [item.role for item in items] == ["user", "assistant"]  # type: ignore[union-attr]


def test_what_is_fetched_later_has_to_be_stored(http: httpx.Client) -> None:
    refused = http.post("/v1/responses", json={"input": "a", "store": False, "background": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")

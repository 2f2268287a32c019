"""Input items that are only named by their ids, as the SDK's `ItemReference` and the Vercel AI SDK send them."""

from __future__ import annotations

import httpx
from openai import OpenAI

from tests.api.fake_worker import FakeWorker


def test_a_named_item_becomes_a_copy_of_it(client: OpenAI, worker: FakeWorker) -> None:
    first = client.responses.create(model="default", input="One.", background=True)
    worker.answer("Two.")
    answer = client.responses.retrieve(first.id).output[0]
    (asked,) = client.responses.input_items.list(first.id).data
    second = client.responses.create(
        model="default",
        input=[
            {"id": asked.id},  # type: ignore[list-item]
            {"type": "item_reference", "id": answer.id},
            {"role": "user", "content": "Three?"},
        ],
        background=True,
    )
    client.responses.delete(first.id)
    items = client.responses.input_items.list(second.id, order="asc").data
    texts = [(item.role, item.content[0].text) for item in items]  # type: ignore[union-attr]
    assert texts == [("user", "One."), ("assistant", "Two."), ("user", "Three?")]
    assert not {asked.id, answer.id} & {item.id for item in items}


def test_an_item_that_is_not_there_is_named(http: httpx.Client, stranger: httpx.Client) -> None:
    mine = http.post("/v1/conversations", json={"items": [{"role": "user", "content": "a"}]}).json()["id"]
    item = http.get(f"/v1/conversations/{mine}/items").json()["data"][0]["id"]
    for caller, reference, status, param in (
        (stranger, {"type": "item_reference", "id": item}, 404, "input"),
        (http, {"type": "item_reference", "id": "msg_0"}, 404, "input"),
        (http, {"type": "item_reference"}, 400, "input[1].id"),
        (http, {"type": "item_reference", "id": 3}, 400, "input[1].id"),
        (http, {"type": "item_reference", "id": item, "role": "user"}, 400, "input[1].role"),
        (http, {"type": "item_reference", "id": item}, 200, None),
    ):
        body = {"input": [{"role": "user", "content": "b"}, reference], "background": True}
        answer = caller.post("/v1/responses", json=body)
        assert answer.status_code == status, answer.text
        if param is not None:
            assert answer.json()["error"]["param"] == param
    listed = http.get("/v1/responses").json()["data"]
    assert len(listed) == 1
    refused = http.post(
        f"/v1/conversations/{mine}/items", json={"items": [{"type": "item_reference", "id": item}]}
    )
    assert refused.json()["error"]["param"] == "items[0].type"

"""Conversations with the official client: objects, items, pages, and whose they are."""

from __future__ import annotations

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItemList
from openai.types.conversations.message import Message

from tests.api.fake_worker import FakeWorker
from tests.api.strict import check

ITEM_LEFT_OUT = ("phase", "content[].prompt_cache_breakpoint")


def test_the_life_of_a_conversation(client: OpenAI, http: httpx.Client) -> None:
    created = client.conversations.create(metadata={"topic": "tea"})
    path = f"/v1/conversations/{created.id}"
    check(Conversation, http.get(path).json())
    assert client.conversations.retrieve(created.id).metadata == {"topic": "tea"}
    assert client.conversations.update(created.id, metadata={"topic": "coffee"}).metadata == {
        "topic": "coffee"
    }
    assert client.conversations.update(created.id, metadata=None).metadata == {}
    deleted = http.delete(path).json()
    check(ConversationDeletedResource, deleted)
    for gone in (http.get(path), http.delete(path), http.get(f"{path}/items")):
        assert gone.status_code == 404


def test_items_are_added_read_and_taken_out(client: OpenAI, http: httpx.Client) -> None:
    conversation = client.conversations.create(items=[{"role": "system", "content": "Be kind."}])
    path = f"/v1/conversations/{conversation.id}/items"
    added = http.post(
        path,
        json={
            "items": [
                {"role": "user", "content": "One?"},
                {"role": "assistant", "content": [{"type": "output_text", "text": "One."}]},
            ]
        },
    ).json()
    check(
        ConversationItemList,
        added,
        left_out=("data[].phase", "data[].content[].prompt_cache_breakpoint"),
    )
    assert [item["role"] for item in added["data"]] == ["user", "assistant"]

    listed = client.conversations.items.list(conversation.id, order="asc")
    assert [item.content[0].text for item in listed] == ["Be kind.", "One?", "One."]
    newest = http.get(path, params={"limit": 2}).json()
    assert [item["id"] for item in newest["data"]] == [added["last_id"], added["first_id"]]
    assert newest["has_more"] is True
    rest = http.get(path, params={"after": newest["last_id"]}).json()
    assert [item["role"] for item in rest["data"]] == ["system"]
    assert rest["has_more"] is False

    one = http.get(f"{path}/{added['first_id']}").json()
    check(Message, one, left_out=ITEM_LEFT_OUT)
    left = client.conversations.items.delete(added["first_id"], conversation_id=conversation.id)
    assert left.id == conversation.id
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(added["first_id"], conversation_id=conversation.id)


def test_an_empty_conversation_has_a_valid_page(client: OpenAI, http: httpx.Client) -> None:
    conversation = client.conversations.create()
    page = http.get(f"/v1/conversations/{conversation.id}/items").json()
    check(ConversationItemList, page)
    assert page == {"object": "list", "data": [], "first_id": "", "last_id": "", "has_more": False}


def test_a_finished_turn_stands_in_its_conversation(client: OpenAI, worker: FakeWorker) -> None:
    conversation = client.conversations.create()
    turn = client.responses.create(
        model="default", input="Hello?", conversation=conversation.id, background=True
    )
    assert client.conversations.items.list(conversation.id).data == []
    worker.answer("Hello.")
    texts = [item.content[0].text for item in client.conversations.items.list(conversation.id, order="asc")]
    assert texts == ["Hello?", "Hello."]
    client.conversations.delete(conversation.id)
    assert client.responses.retrieve(turn.id).output_text == "Hello."


def test_what_is_refused(client: OpenAI, http: httpx.Client) -> None:
    conversation = client.conversations.create()
    path = f"/v1/conversations/{conversation.id}/items"
    message = {"role": "user", "content": "a"}
    for url, body, param in (
        ("/v1/conversations", {"items": [message] * 21}, "items"),
        ("/v1/conversations", {"items": [{"type": "item_reference", "id": "msg_1"}]}, "items[0].type"),
        ("/v1/conversations", {"metadata": {"a": 1}}, "metadata.a"),
        ("/v1/conversations", {"name": "x"}, "name"),
        (path, {"items": [message] * 21}, "items"),
        (path, {"items": []}, "items"),
        (path, {}, "items"),
        (
            path,
            {"items": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "items[0].content[0].type",
        ),
        (f"{path}?include[]=x", {"items": [message]}, "include"),
        (f"/v1/conversations/{conversation.id}", {}, "metadata"),
    ):
        answer = http.post(url, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), (url, body)
    assert client.conversations.items.list(conversation.id).data == []


def test_conversations_are_listed_and_belong_to_a_project(
    client: OpenAI, http: httpx.Client, stranger: httpx.Client
) -> None:
    ids = [client.conversations.create(items=[{"role": "user", "content": "a"}]).id for _ in range(3)]
    page = http.get("/v1/conversations", params={"limit": 2}).json()
    assert [each["id"] for each in page["data"]] == [ids[2], ids[1]]
    assert page["has_more"] is True
    assert stranger.get("/v1/conversations").json()["data"] == []
    item = client.conversations.items.list(ids[0]).data[0].id
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/items"),
        ("GET", f"/items/{item}"),
        ("DELETE", f"/items/{item}"),
    ):
        assert stranger.request(method, f"/v1/conversations/{ids[0]}{path}").status_code == 404
    body = {"items": [{"role": "user", "content": "b"}]}
    assert stranger.post(f"/v1/conversations/{ids[0]}/items", json=body).status_code == 404
    assert stranger.post(f"/v1/conversations/{ids[0]}", json={"metadata": {}}).status_code == 404
    turn = {"input": "b", "conversation": ids[0]}
    assert stranger.post("/v1/responses", json=turn).status_code == 404
    assert len(client.conversations.items.list(ids[0]).data) == 1

"""Calls of functions as callers see them: one item, its arguments in deltas, the same log for every reader."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from redis import Redis

from api import events
from api.events import Answer
from storage import output_items, react
from storage.database import Database
from tests.api.reading import Reader, whole
from tests.api.speaker import Speaker

TOOLS: Any = [
    {
        "type": "function",
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    }
]
CALL = ["Thought:", " Look.", "\nAction: wea", "ther\nAction", " Input: {", '"city"', ': "Ro', "", 'me"}']
ARGUMENTS = ["{", '"city"', ': "Ro', 'me"}']
TEXT = ["Thought: I know.\n", "Final Answer:", " It", " is", " sunny."]


def events_of(http: httpx.Client, response_id: str, after: int | None = None) -> list[Any]:
    return [json.loads(event) for event in whole(http, response_id, after)]


def ask(client: OpenAI, **more: Any) -> str:
    asked: Any = {"model": "default", "input": "How is Rome?", "tools": TOOLS, "background": True, **more}
    return str(client.responses.create(**asked).id)


def test_a_call_streams_its_arguments(
    client: OpenAI, http: httpx.Client, database: Database, redis: Redis
) -> None:
    """Whoever reads, from wherever, while the worker is replaced in the middle: the same events."""
    response_id = ask(client)
    live = Reader(http, response_id)
    first = Speaker(database, redis)
    first.say(*CALL[:6])
    live.has(6)
    first.checkpoint()
    first.say(CALL[6])
    first.vanish()
    second = Speaker(database, redis)
    second.say(*CALL[7:])
    second.finish()
    log = events_of(http, response_id)
    assert [json.loads(event) for event in live.to_end()] == log
    assert [event["type"].removeprefix("response.") for event in log] == [
        "created",
        "queued",
        "in_progress",
        "output_item.added",
        *["function_call_arguments.delta"] * 4,
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in log[4:8]] == ARGUMENTS
    assert log[8]["arguments"] == '{"city": "Rome"}'
    assert log[8]["name"] == "weather"
    (item,) = log[-1]["response"]["output"]
    assert item == log[9]["item"]
    assert log[3]["item"] == {**item, "arguments": "", "status": "in_progress"}
    assert {event["item_id"] for event in log[4:9]} == {item["id"]}
    assert (item["type"], item["status"], item["name"]) == ("function_call", "completed", "weather")
    for number in range(len(log)):
        assert events_of(http, response_id, number) == log[number + 1 :]


@settings(deadline=None)
@given(
    st.sampled_from(["".join(CALL), "".join(TEXT), "Thought: cut"]),
    st.sets(st.integers(1, 60)),
    st.sampled_from(["completed", "incomplete", "failed", "cancelled"]),
)
def test_the_log_only_grows(text: str, cuts: set[int], end: str) -> None:
    """However the text is cut into tokens, whoever knows how much of it: the events are the first of the same log."""
    places = sorted(cut for cut in cuts if cut < len(text))
    deltas = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    asked: Any = {"tools": TOOLS, "tool_choice": "auto"}
    name, content = react.content(asked, deltas)
    body = output_items.body("msg_1", name, content, end)
    output = (
        [{"id": output_items.item_id("msg_1", name), **body}] if end in ("completed", "incomplete") else []
    )
    final = list(events.after(Answer({**asked, "status": end, "output": output}, "msg_1", True, deltas), -1))
    assert [event["sequence_number"] for event in final] == list(range(len(final)))
    assert "".join(event.get("delta", "") for event in final) == content
    for known in range(len(deltas) + 1):
        shown: Any = {**asked, "status": "queued", "output": []}
        so_far = list(events.after(Answer(shown, "msg_1", True, deltas[:known]), -1))
        assert so_far == final[: len(so_far)]
    for number in range(len(final)):
        answer = Answer({**asked, "status": end, "output": output}, "msg_1", True, deltas)
        assert list(events.after(answer, number)) == final[number + 1 :]


def test_while_it_is_not_clear_what_an_answer_is_nothing_is_shown(
    client: OpenAI, http: httpx.Client, database: Database, redis: Redis
) -> None:
    for pieces, seen in ((CALL[:4], []), (TEXT[:2], []), (TEXT[:3], ["It"])):
        response_id = ask(client)
        speaker = Speaker(database, redis)
        speaker.say(*pieces)
        speaker.fail()
        log = events_of(http, response_id)
        assert [event["delta"] for event in log if event["type"].endswith(".delta")] == seen
        assert log[-1]["type"] == "response.failed"
        assert log[-1]["response"]["output"] == []


def test_the_final_answer_is_a_message(client: OpenAI, database: Database, redis: Redis) -> None:
    response_id = ask(client)
    speaker = Speaker(database, redis)
    speaker.say(*TEXT)
    speaker.finish()
    response = client.responses.retrieve(response_id)
    assert response.output_text == "It is sunny."
    assert response.output[0].type == "message"
    assert response.tools[0].type == "function"
    assert response.tool_choice == "auto"


@pytest.mark.parametrize(
    ("pieces", "kind", "seen"), [(CALL[:6], "function_call", '{"city"'), (CALL[:3], "message", "")]
)
def test_what_is_cut_is_incomplete(
    client: OpenAI,
    http: httpx.Client,
    database: Database,
    redis: Redis,
    pieces: list[str],
    kind: str,
    seen: str,
) -> None:
    response_id = ask(client)
    speaker = Speaker(database, redis)
    speaker.say(*pieces)
    speaker.finish(incomplete=True)
    response = http.get(f"/v1/responses/{response_id}").json()
    (item,) = response["output"]
    assert (item["type"], item["status"]) == (kind, "incomplete")
    assert (item["arguments"] if kind == "function_call" else item["content"][0]["text"]) == seen
    assert events_of(http, response_id)[-1]["response"] == response


def test_a_call_and_its_output_are_items_of_the_next_turn(
    client: OpenAI, http: httpx.Client, database: Database, redis: Redis
) -> None:
    conversation = client.conversations.create().id
    first = ask(client, conversation=conversation)
    speaker = Speaker(database, redis)
    speaker.say(*CALL)
    speaker.finish()
    call = client.responses.retrieve(first).output[0]
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Rome"}
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    second = ask(client, conversation=conversation, input=output)
    speaker = Speaker(database, redis)
    speaker.say(*TEXT)
    speaker.finish()
    items = client.conversations.items.list(conversation, order="asc").data
    assert [item.type for item in items] == ["message", "function_call", "function_call_output", "message"]
    assert [item.id.partition("_")[0] for item in items] == ["msg", "fc", "fco", "msg"]
    (given,) = client.responses.input_items.list(second).data
    assert given.type == "function_call_output"
    assert given.output == "sunny"

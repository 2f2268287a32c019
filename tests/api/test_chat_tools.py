"""Functions and formats through Chat Completions: what is read, shown, streamed and refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from redis import Redis

from storage.database import Database
from tests.api.fake_worker import FakeWorker
from tests.api.speaker import Speaker
from tests.api.strict import check
from tests.api.test_chat_completions import LEFT_OUT, Pending, chunks_of, jobs, post, waits_for
from tests.api.test_tools import ARGUMENTS, CALL, TEXT

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
CALLED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
ASKED: Any = {"role": "user", "content": "How is Rome?"}
OUTPUT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}


def test_a_call_is_exactly_the_sdks(http: httpx.Client, worker: FakeWorker) -> None:
    with worker.at_work("".join(CALL)):
        shown = post(http, model="default", tools=[TOOL], tool_choice="required").json()
    (choice,) = shown["choices"]
    left_out = [name for name in LEFT_OUT if not name.endswith("tool_calls")]
    check(ChatCompletion, shown, left_out=left_out)
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert call["id"].startswith("call_")


def test_a_call_in_chunks(http: httpx.Client, database: Database, redis: Redis) -> None:
    with chunks_of(http, tools=[TOOL]) as chunks:
        waits_for(database, 1)
        speaker = Speaker(database, redis)
        speaker.say(*CALL[:3])
        speaker.say(*CALL[3:])
        speaker.finish()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    (first,) = deltas[1]["tool_calls"]
    assert first["function"] == {"name": "weather", "arguments": ""}
    assert (first["type"], first["index"]) == ("function", 0)
    rest = [delta["tool_calls"] for delta in deltas[2:-1]]
    assert rest == [[{"index": 0, "function": {"arguments": piece}}] for piece in ARGUMENTS]
    assert deltas[-1] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)


def test_the_final_answer_in_chunks(http: httpx.Client, database: Database, redis: Redis) -> None:
    with chunks_of(http, tools=[TOOL]) as chunks:
        waits_for(database, 1)
        speaker = Speaker(database, redis)
        speaker.say(*TEXT)
        speaker.finish()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta["content"] for delta in deltas[1:-1]] == ["It", " is", " sunny."]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_what_the_worker_reads(http: httpx.Client, database: Database, redis: Redis) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("weather")]}}
    messages = [ASKED, {"role": "assistant", "tool_calls": [CALLED]}, OUTPUT]
    asked = Pending(
        http, messages=messages, tools=[TOOL], tool_choice=choice, response_format=form, store=True
    )
    waits_for(database, 1)
    speaker = Speaker(database, redis)
    speaker.say(*TEXT)
    speaker.finish()
    shown = asked.result().json()
    (job,) = jobs(database)
    assert job.request["tools"] == [{"type": "function", **TOOL["function"]}]
    assert job.request["tool_choice"] == {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "weather"}],
    }
    assert job.request["text"]["format"] == {
        "type": "json_schema",
        "name": "n",
        "description": None,
        "schema": schema,
        "strict": True,
    }
    stored = http.get(f"/v1/chat/completions/{shown['id']}/messages").json()["data"]
    assert [message["role"] for message in stored] == ["user", "assistant", "tool"]
    assert stored[1]["tool_calls"] == [CALLED]
    assert (stored[2]["tool_call_id"], stored[2]["content"]) == ("c1", "sunny")


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def form(**of: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": of}}


def tool(**of: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": of}]}


UNSUPPORTED, UNKNOWN, TYPE, VALUE = (
    "unsupported_parameter",
    "unknown_parameter",
    "invalid_type",
    "invalid_value",
)
MISSING, SCHEMA, BOTH = (
    "missing_required_parameter",
    "invalid_json_schema",
    "mutually_exclusive_parameters",
)
FORMAT = "response_format.json_schema"
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "custom"}]}, "tools[0].type", UNSUPPORTED),
    ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].name", UNKNOWN),
    (tool(name="a b"), "tools[0].function.name", VALUE),
    (tool(description="a"), "tools[0].function.name", MISSING),
    (tool(name="f", parameters={"not": {}}), "tools[0].function.parameters", SCHEMA),
    ({"tool_choice": "required"}, "tool_choice", VALUE),
    ({"tools": [TOOL], "tool_choice": named("f")}, "tool_choice", VALUE),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name", UNKNOWN),
    ({"tools": [TOOL], "stop": "a"}, "stop", BOTH),
    ({"tools": [TOOL], "logprobs": True}, "logprobs", BOTH),
    ({"response_format": "json"}, "response_format", TYPE),
    ({"response_format": {"type": "xml"}}, "response_format.type", UNSUPPORTED),
    ({"response_format": {"type": "json_schema"}}, FORMAT, TYPE),
    (form(name="n"), f"{FORMAT}.schema", MISSING),
    (form(name="n", schema={"type": "x"}), f"{FORMAT}.schema", SCHEMA),
    (form(name="n", schema={}, colour="red"), f"{FORMAT}.colour", UNKNOWN),
    ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop", BOTH),
    ({"messages": [ASKED, OUTPUT]}, "messages", VALUE),
    ({"messages": [ASKED, {**OUTPUT, "role": "function"}]}, "messages[1].tool_call_id", UNKNOWN),
    ({"messages": [ASKED, {"role": "tool", "content": "a"}]}, "messages[1].tool_call_id", MISSING),
    ({"messages": [{**ASKED, "tool_calls": [CALLED]}]}, "messages[0].tool_calls", VALUE),
    (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{**CALLED, "function": {"name": "f"}}]}]},
        "messages[1].tool_calls[0].function.arguments",
        MISSING,
    ),
]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_bad_requests_name_their_parameter(http: httpx.Client) -> None:
    wrong = []
    for change, param, code in BAD:
        answer = post(http, **change)
        error = answer.json().get("error") or {}
        if (answer.status_code, error.get("param"), error.get("code")) != (400, param, code):
            wrong.append((json.dumps(change)[:100], answer.status_code, error))
    assert not wrong

"""A function called by the real small model through the official client, and its output answered."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic

from tests.acceptance.house import House


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str = pydantic.Field(max_length=30)
    days: int = pydantic.Field(ge=1, le=7)


TOOLS: Any = [openai.pydantic_function_tool(Weather, name="weather")["function"] | {"type": "function"}]
ASKED = "How will the weather in Rome be tomorrow?"


def test_a_call_and_its_output_in_one_conversation(house: House) -> None:
    client = house.client()
    conversation = client.conversations.create().id
    asked: Any = {"model": "default", "tools": TOOLS, "temperature": 0, "conversation": conversation}
    first = client.responses.create(input=ASKED, tool_choice="required", **asked)
    assert first.status == "completed"
    (call,) = first.output
    assert call.type == "function_call"
    assert call.name == "weather"
    Weather.model_validate_json(call.arguments)
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 31 degrees."}]
    second = client.responses.create(input=output, tool_choice="none", max_output_tokens=64, **asked)
    assert second.output_text
    assert "Observation" not in second.output_text
    items = client.conversations.items.list(conversation, order="asc").data
    assert [item.type for item in items] == ["message", "function_call", "function_call_output", "message"]


def test_the_model_may_choose(house: House) -> None:
    response = house.client().responses.create(
        model="default", input=ASKED, tools=TOOLS, temperature=1, max_output_tokens=300
    )
    (item,) = response.output
    if item.type == "function_call" and response.status == "completed":
        Weather.model_validate_json(item.arguments)
    else:
        assert item.type == "message" or response.status == "incomplete"


def test_a_worker_dies_within_a_call_and_another_ends_it(house: House) -> None:
    """The SDK's helper parses the arguments that two workers wrote."""
    client = house.client()
    seen: list[Any] = []
    long = {
        "type": "function",
        "name": "poem",
        "description": "Publish a poem.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "lines": {
                    "type": "array",
                    "items": {"type": "string", "minLength": 20, "maxLength": 30},
                    "minItems": 8,
                    "maxItems": 8,
                }
            },
            "required": ["lines"],
            "additionalProperties": False,
        },
    }
    tools: Any = [long]
    try:
        with client.responses.stream(
            model="default",
            input="Write a poem of eight lines and publish it.",
            background=True,
            tools=tools,
            tool_choice={"type": "function", "name": "poem"},
            temperature=1,
        ) as events:
            for event in events:
                seen.append(event)
                if len(seen) == 20:
                    house.kill("worker")
                    house.start("worker-2")
            final = events.get_final_response()
    finally:
        house.back_to_one_worker()
    assert final.status == "completed"
    (call,) = final.output
    assert call.type == "function_call"
    assert [20 <= len(line) <= 30 for line in json.loads(call.arguments)["lines"]] == [True] * 8
    deltas = [event.delta for event in seen if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    assert [event.sequence_number for event in seen] == list(range(len(seen)))


def test_the_same_through_chat_completions(sqlite_house: House) -> None:
    """The helper of the SDK puts the chunks together and parses the arguments."""
    client = sqlite_house.client()
    tools: Any = [openai.pydantic_function_tool(Weather, name="weather")]
    messages: Any = [{"role": "user", "content": ASKED}]
    asked: Any = {"model": "default", "tools": tools, "temperature": 1, "seed": 3}
    with client.chat.completions.stream(messages=messages, tool_choice="required", **asked) as events:
        for event in events:
            assert event.type != "error"
        (choice,) = events.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)
    messages += [
        choice.message.model_dump(include={"role", "tool_calls"}, exclude={"tool_calls": {0: {"index"}}}),
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 31 degrees."},
    ]
    for message in messages:
        for each in message.get("tool_calls", ()):
            each["function"].pop("parsed_arguments", None)
    second = client.chat.completions.create(messages=messages, tool_choice="none", max_tokens=64, **asked)
    assert second.choices[0].message.content
    assert second.choices[0].finish_reason in ("stop", "length")


def test_a_format_through_chat_completions(sqlite_house: House) -> None:
    answer = sqlite_house.client().chat.completions.parse(
        model="default",
        messages=[{"role": "user", "content": f"{ASKED} Answer in JSON."}],
        response_format=Weather,
        temperature=1,
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)

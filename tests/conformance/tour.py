"""Every method that the SDK has for a text model, called the way its documentation calls it.

The proxy judges the JSON; here the client's own objects are looked at: is each event of the class that the SDK has for
it, do the helpers work, do pages follow each other?
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.conformance.calling import Client, every, got, opened
from tests.conformance.judge import KINDS
from tests.receiver import Receiver

STORY = "Write a very long story about a lighthouse keeper and the sea. Tell every detail."
ENDED = ("completed", "incomplete", "failed", "cancelled")

Part = Callable[[Client, Receiver], Awaitable[None]]


async def the_end(client: Client, response_id: str) -> Any:
    """Read the response's stream to its end and return the response."""
    await every(client.responses.retrieve(response_id, stream=True))
    return await got(client.responses.retrieve(response_id))


async def an_answer(client: Client, _: Receiver) -> None:
    turns = [
        {"role": "developer", "content": "You are brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {"role": "assistant", "content": "Hello!"},
        {"type": "message", "role": "user", "content": "Who are you?"},
    ]
    answer = await got(
        client.responses.create(
            model="default",
            input=turns,
            instructions="Answer in English.",
            max_output_tokens=12,
            temperature=0.5,
            top_p=0.9,
            metadata={"a": "b"},
            truncation="auto",
            user="u",
            safety_identifier="s",
            prompt_cache_key="k",
            prompt_cache_retention="in_memory",
            parallel_tool_calls=False,
            service_tier="priority",
            store=True,
            text={"format": {"type": "text"}},
            tool_choice="none",
            tools=[],
            include=[],
            top_logprobs=0,
        )
    )
    assert answer.status in ("completed", "incomplete")
    assert answer.output_text
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    shown = await every(client.responses.input_items.list(answer.id, limit=2, order="asc"))
    assert [item.role for item in shown] == ["developer", "user", "assistant", "user"]
    continued = await got(
        client.responses.create(
            model="default",
            input="And where?",
            previous_response_id=answer.id,
            max_output_tokens=4,
            service_tier="flex",
        )
    )
    assert continued.previous_response_id == answer.id
    assert await got(client.responses.delete(answer.id)) is None
    with pytest.raises(openai.NotFoundError):
        await got(client.responses.retrieve(answer.id))


async def a_stream(client: Client, _: Receiver) -> None:
    asked: dict[str, Any] = {"model": "default", "input": "Count to three.", "max_output_tokens": 24}
    events = await every(
        client.responses.create(**asked, stream=True, stream_options={"include_obfuscation": False})
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        assert type(event) is KINDS[event.type]
    last = events[-1].response
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == last.output_text
    rest = await every(client.responses.retrieve(last.id, stream=True, starting_after=6))
    assert rest == events[7:]

    async with opened(client.responses.stream(**asked, background=True)) as stream:
        helped = await every(stream)
    assert helped[-1].response.output_text
    async with opened(
        client.responses.stream(response_id=helped[-1].response.id, starting_after=4)
    ) as stream:
        again = await every(stream)
    assert [event.sequence_number for event in again] == [event.sequence_number for event in helped[5:]]


async def the_background(client: Client, _: Receiver) -> None:
    job = await got(
        client.responses.create(model="default", input=STORY, background=True, max_output_tokens=400)
    )
    assert job.status == "queued"
    later = await got(
        client.responses.create(
            model="default",
            input="a",
            background=True,
            background_options={"completion_window": "8h"},
        )
    )
    assert (await got(client.responses.retrieve(later.id))).service_tier == "flex"
    for each in (job, later):
        await got(client.responses.cancel(each.id))
        assert (await the_end(client, each.id)).status in ENDED
    assert (await got(client.responses.cancel(job.id))).status == "cancelled"
    short = await got(
        client.responses.create(model="default", input="Hello", background=True, max_output_tokens=1)
    )
    assert (await the_end(client, short.id)).incomplete_details.reason == "max_output_tokens"


async def a_conversation(client: Client, _: Receiver) -> None:
    made = await got(
        client.conversations.create(
            items=[{"type": "message", "role": "user", "content": "My dog is called Max."}],
            metadata={"a": "b"},
        )
    )
    await got(
        client.conversations.items.create(
            made.id,
            items=[
                {"role": "assistant", "content": "Noted."},
                {"role": "system", "content": [{"type": "input_text", "text": "Be brief."}]},
            ],
        )
    )
    answer = await got(
        client.responses.create(
            model="default", input="What is it called?", conversation=made.id, max_output_tokens=8
        )
    )
    assert answer.conversation.id == made.id
    items = await every(client.conversations.items.list(made.id, limit=2, order="asc"))
    assert [item.role for item in items] == ["user", "assistant", "system", "user", "assistant"]
    one = await got(client.conversations.items.retrieve(items[0].id, conversation_id=made.id))
    assert one == items[0]
    await got(client.conversations.items.delete(items[0].id, conversation_id=made.id))
    changed = await got(client.conversations.update(made.id, metadata={"c": "d"}))
    assert changed.metadata == {"c": "d"}
    assert await got(client.conversations.retrieve(made.id)) == changed
    empty = await got(client.conversations.create())
    assert await every(client.conversations.items.list(empty.id)) == []
    for each in (made, empty):
        assert (await got(client.conversations.delete(each.id))).deleted


async def the_chat_completions(client: Client, _: Receiver) -> None:
    asked: dict[str, Any] = {
        "model": "default",
        "messages": [
            {"role": "developer", "content": "You are brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        ],
        "max_completion_tokens": 12,
        "seed": 1,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"7": -5},
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "stop": ["#"],
    }
    made = await got(client.chat.completions.create(**asked, store=True, metadata={"a": "b"}))
    assert [choice.index for choice in made.choices] == [0, 1]
    assert made.choices[0].logprobs.content
    assert await got(client.chat.completions.retrieve(made.id)) == made
    assert made in await every(client.chat.completions.list(metadata={"a": "b"}, limit=1))
    messages = await every(client.chat.completions.messages.list(made.id, limit=1))
    assert [message.content for message in messages] == ["You are brief.", "Hello"]
    assert (await got(client.chat.completions.update(made.id, metadata={"c": "d"}))).metadata == {"c": "d"}
    assert (await got(client.chat.completions.delete(made.id))).deleted
    with pytest.raises(openai.NotFoundError):
        await got(client.chat.completions.retrieve(made.id))

    options = {"include_usage": True}
    chunks = await every(client.chat.completions.create(**asked, stream=True, stream_options=options))
    assert chunks[-1].usage.completion_tokens > 0
    one = await every(client.chat.completions.create(**asked | {"n": 1}, stream=True))
    assert one[0].choices[0].delta.role == "assistant"
    assert one[-1].choices[0].finish_reason in ("stop", "length")
    async with opened(client.chat.completions.stream(**asked | {"n": 1})) as stream:
        helped = await every(stream)
    assert {event.type for event in helped} >= {"chunk"}


async def the_completions(client: Client, _: Receiver) -> None:
    asked: dict[str, Any] = {"model": "default", "max_tokens": 8, "temperature": 0, "n": 2}
    told = await got(client.completions.create(**asked, prompt=["Once", "Rain"], echo=True, stop="#"))
    assert [choice.text[:4] for choice in told.choices] == ["Once", "Once", "Rain", "Rain"]
    scored = await got(client.completions.create(**asked, prompt=[5, 6, 7], logprobs=2))
    assert len(scored.choices[0].logprobs.tokens) > 0
    chunks = await every(client.completions.create(**asked, prompt="Once", stream=True, logprobs=1))
    assert {chunk.choices[0].index for chunk in chunks} == {0, 1}


class Dog(BaseModel):
    """What `responses.parse` makes of an answer."""

    name: str
    age: int


async def a_form(client: Client, _: Receiver) -> None:
    asked: dict[str, Any] = {"model": "default", "input": "Invent a dog.", "max_output_tokens": 80}
    parsed = await got(client.responses.parse(**asked, text_format=Dog))
    assert parsed.status == "incomplete" or isinstance(parsed.output_parsed, Dog)
    loose = await got(client.responses.create(**asked, text={"format": {"type": "json_object"}}))
    assert loose.status == "incomplete" or isinstance(json.loads(loose.output_text), dict)


async def the_tools(client: Client, _: Receiver) -> None:
    weather = {
        "type": "function",
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    }
    asked: dict[str, Any] = {"model": "default", "tools": [weather], "max_output_tokens": 80}
    question = "What is the weather in Paris?"
    answer = await got(client.responses.create(**asked, input=question, tool_choice="required"))
    (call,) = (item for item in answer.output if item.type == "function_call")
    assert json.loads(call.arguments).keys() == {"city"}
    events = await every(
        client.responses.create(
            **asked,
            input=question,
            stream=True,
            tool_choice={"type": "function", "name": "get_weather"},
        )
    )
    for event in events:
        assert type(event) is KINDS[event.type]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    continued = await got(client.responses.create(**asked, input=[output], previous_response_id=answer.id))
    assert continued.status in ("completed", "incomplete")
    assert len(await every(client.responses.input_items.list(continued.id))) == 1


async def the_models(client: Client, _: Receiver) -> None:
    (model,) = await every(client.models.list())
    assert await got(client.models.retrieve(model.id)) == model


async def the_tokens_of_a_prompt(client: Client, _: Receiver) -> None:
    asked: dict[str, Any] = {"model": "default", "input": "Hello there", "instructions": "Be brief."}
    counted = await got(client.responses.input_tokens.count(**asked))
    answer = await got(client.responses.create(**asked, max_output_tokens=1))
    assert counted.input_tokens == answer.usage.input_tokens


async def the_files(client: Client, _: Receiver) -> None:
    body = {"model": "default", "input": "Hello"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}
    data = json.dumps(line).encode() + b"\n"
    made = await got(
        client.files.create(
            file=("lines.jsonl", data),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
    )
    assert (made.bytes, made.filename) == (len(data), "lines.jsonl")
    assert await got(client.files.retrieve(made.id)) == made
    assert made in await every(client.files.list(limit=1, purpose="batch"))
    assert (await got(client.files.content(made.id))).content == data
    with pytest.warns(DeprecationWarning, match="content"):
        await got(client.files.retrieve_content(made.id))
    assert (await got(client.files.delete(made.id))).deleted


async def the_batches(client: Client, _: Receiver) -> None:
    body = {"model": "default", "input": "Hello", "max_output_tokens": 2}
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/responses", "body": body | {"temperature": n}}
        for n in (0, 1, 3)
    ]

    async def ended(chosen: list[dict[str, Any]], *, cancelled: bool = False) -> Any:
        data = "".join(json.dumps(line) + "\n" for line in chosen).encode()
        file = await got(client.files.create(file=("lines.jsonl", data), purpose="batch"))
        batch = await got(
            client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/responses",
                completion_window="24h",
                metadata={"a": "b"},
                output_expires_after={"anchor": "created_at", "seconds": 3600},
            )
        )
        if cancelled:
            await got(client.batches.cancel(batch.id))
        async with asyncio.timeout(60):
            while batch.status not in ("completed", "failed", "cancelled"):
                await asyncio.sleep(0.1)
                batch = await got(client.batches.retrieve(batch.id))
        return batch

    done = await ended(lines[:2])
    assert done.status == "completed"
    output = (await got(client.files.content(done.output_file_id))).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in output] == ["0", "1"]
    assert done in await every(client.batches.list(limit=1))
    failed = await ended(lines)
    assert (failed.status, failed.errors.data[0].line) == ("failed", 3)
    assert (await ended(lines[:2], cancelled=True)).status == "cancelled"


async def the_webhooks(client: Client, receiver: Receiver) -> None:
    assert "response.completed" in (await got(client.webhooks.event_types.list())).data
    made = await got(
        client.webhooks.create(
            name="orders", url=receiver.url, event_types=["response.completed", "response.incomplete"]
        )
    )
    assert made.id in [each.id for each in await every(client.webhooks.list(limit=1))]
    changed = await got(client.webhooks.update(made.id, name="bills"))
    assert changed.name == "bills"
    assert (await got(client.webhooks.retrieve(made.id))).name == "bills"
    tested = await got(client.webhooks.test(made.id, event_type="response.completed"))
    assert tested.success
    rotated = await got(client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True))
    job = await got(
        client.responses.create(model="default", input="Hello", max_output_tokens=2, background=True)
    )
    async with asyncio.timeout(30):
        while not receiver.about(job.id):
            await asyncio.sleep(0.05)
    told = receiver.about(job.id)[0]
    for secret in (made.signing_secret, rotated.signing_secret):
        event = client.webhooks.unwrap(told.body, told.headers, secret=secret)
        assert (event.type, event.data.id) == ("response.incomplete", job.id)
    assert (await got(client.webhooks.delete(made.id))).deleted


async def the_errors(client: Client, _: Receiver) -> None:
    for kind, param, asked in (
        (openai.BadRequestError, "temperature", {"temperature": 3}),
        (openai.BadRequestError, "reasoning", {"reasoning": {"effort": "low"}}),
        (openai.NotFoundError, "model", {"model": "gpt-nowhere"}),
        (openai.NotFoundError, "previous_response_id", {"previous_response_id": "resp_0"}),
        (openai.BadRequestError, "max_token", {"extra_body": {"max_token": 3}}),
    ):
        with pytest.raises(kind) as caught:
            await got(client.responses.create(**{"model": "default", "input": "a", **asked}))
        assert caught.value.param == param
        assert caught.value.request_id
    with pytest.raises(openai.AuthenticationError):
        await got(client.with_options(api_key="sk-wrong").models.list())
    with pytest.raises(openai.NotFoundError):
        await got(client.models.retrieve("gpt-nowhere"))


PARTS: tuple[Part, ...] = (
    an_answer,
    a_stream,
    the_background,
    a_conversation,
    the_chat_completions,
    the_completions,
    a_form,
    the_tools,
    the_models,
    the_tokens_of_a_prompt,
    the_files,
    the_batches,
    the_webhooks,
    the_errors,
)

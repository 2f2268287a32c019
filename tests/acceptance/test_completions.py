"""Chat Completions and Completions through the whole service: official client, real worker, demo model."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError
from sqlalchemy import select

from storage.models import Response
from tests.acceptance.house import House, until

MESSAGES: Any = [{"role": "user", "content": "Tell me a long story about a king and his three sons."}]
SAMPLED: Any = {"seed": 5, "temperature": 1.0, "top_p": 1.0, "max_tokens": 200}


def joined(chunks: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_what_was_streamed_is_what_is_stored(sqlite_house: House) -> None:
    client = sqlite_house.client()
    stream = client.chat.completions.create(
        model="default",
        messages=MESSAGES,
        stream=True,
        store=True,
        stream_options={"include_usage": True},
        **SAMPLED,
    )
    chunks = list(stream)
    stored = client.chat.completions.retrieve(chunks[0].id)
    (choice,) = stored.choices
    assert choice.message.content == joined(chunks) != ""
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert chunks[-1].usage == stored.usage
    assert stored.usage is not None
    assert stored.usage.completion_tokens > 0


def test_each_of_several_answers_has_a_seed_of_its_own(sqlite_house: House) -> None:
    client = sqlite_house.client()
    # Short: with other work beside them, sums of the same numbers may differ in their last bit.
    how: Any = {**SAMPLED, "max_tokens": 6}
    several = client.chat.completions.create(model="default", messages=MESSAGES, n=3, **how)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    third = client.chat.completions.create(model="default", messages=MESSAGES, **{**how, "seed": 7})
    assert third.choices[0].message.content == texts[2]


def test_a_stream_goes_on_when_its_worker_is_killed(sqlite_house: House) -> None:
    client = sqlite_house.client()
    chunks = []
    stream = client.chat.completions.create(
        model="default",
        messages=MESSAGES,
        stream=True,
        store=True,
        logprobs=True,
        top_logprobs=2,
        presence_penalty=0.2,
        **SAMPLED,
    )
    for number, chunk in enumerate(stream):
        chunks.append(chunk)
        if number == 20:
            sqlite_house.kill("worker")
            sqlite_house.start("worker")
    (choice,) = client.chat.completions.retrieve(chunks[0].id).choices
    assert joined(chunks) == choice.message.content
    assert choice.logprobs is not None
    told = [
        token
        for chunk in chunks
        for each in chunk.choices
        if each.logprobs is not None
        for token in each.logprobs.content or []
    ]
    assert told == choice.logprobs.content
    assert len(told) > 40
    with sqlite_house.database.read() as session:
        assert session.scalar(select(Response.attempt).where(Response.id == chunks[0].id)) == 2


def test_a_caller_that_goes_away_is_answered_no_longer(sqlite_house: House) -> None:
    client = sqlite_house.client()
    stream = client.chat.completions.create(
        model="default", messages=MESSAGES, stream=True, n=2, **{**SAMPLED, "max_tokens": 2000}
    )
    first = next(iter(stream))
    stream.close()

    def cancelled() -> bool:
        with sqlite_house.database.read() as session:
            query = select(Response.status).where(
                (Response.id == first.id) | (Response.parent_id == first.id)
            )
            return set(session.scalars(query)) <= {"cancelled"}

    until("both answers to be cancelled", cancelled)


def test_a_prompt_is_told_token_by_token_as_it_was_generated(sqlite_house: House) -> None:
    """What a greedy answer is told to be is what its text, sent as a prompt, is told to be."""
    client = sqlite_house.client()
    greedy: Any = {"model": "default", "temperature": 0, "logprobs": 2}
    first = client.completions.create(prompt="Once upon a time", echo=True, max_tokens=12, **greedy)
    (choice,) = first.choices
    assert choice.logprobs is not None
    tokens, values = choice.logprobs.tokens or [], choice.logprobs.token_logprobs or []
    assert "".join(tokens).replace("<|im_end|>", "") == choice.text
    assert choice.text.startswith("Once upon a time")
    assert values[0] is None
    again = client.completions.create(prompt=choice.text, echo=True, max_tokens=0, **greedy)
    told = again.choices[0].logprobs
    assert told is not None
    assert again.choices[0].text == choice.text
    assert again.usage is not None
    assert again.usage.completion_tokens == 0
    assert told.tokens == tokens[: len(told.tokens or [])]
    # Read in one go or token by token, eight-bit products add up a little differently.
    assert (told.token_logprobs or [])[1:] == pytest.approx(values[1 : len(told.tokens or [])], abs=0.3)
    for offset, token in zip(choice.logprobs.text_offset or [], tokens, strict=True):
        assert token.startswith(("<|", "bytes:")) or choice.text[offset:].startswith(token)


def test_several_prompts_have_several_answers_each(sqlite_house: House) -> None:
    client = sqlite_house.client()
    how: Any = {"model": "default", "max_tokens": 6, "seed": 3, "n": 2}
    told = client.completions.create(prompt=["The king", "Rain"], echo=True, **how)
    assert [choice.index for choice in told.choices] == [0, 1, 2, 3]
    assert [choice.text.split()[0] for choice in told.choices] == ["The", "The", "Rain", "Rain"]
    streamed = [""] * 4
    for chunk in client.completions.create(prompt=["The king", "Rain"], echo=True, stream=True, **how):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in told.choices]


def test_a_token_that_does_not_exist_is_refused_with_its_parameter(sqlite_house: House) -> None:
    client = sqlite_house.client()
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model="default", messages=MESSAGES, logit_bias={"9999999": 5})
    assert (refused.value.param, refused.value.code) == ("logit_bias", "invalid_logit_bias")
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(model="default", prompt=[[1, 2], [3, 9999999]])
    assert (refused.value.param, refused.value.code) == ("prompt", "invalid_token_id")
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(model="default", prompt="word " * 9000)
    assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")

"""Streams of real answers while the processes behind them die: the client resumes, and reads one log."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseStreamEvent

from storage import leases
from tests.acceptance.house import House
from tests.acceptance.test_life_of_a_job import STORY

TOKENS = 200


def started(client: OpenAI) -> str:
    return client.responses.create(
        model="default", input=STORY, background=True, temperature=0.9, max_output_tokens=TOKENS
    ).id


def stored_text(house: House, response_id: str) -> str:
    with house.database.read() as session:
        stored = leases.output(session, response_id)
    return "".join(stored.pieces) + stored.tail


def whole(client: OpenAI, response_id: str) -> list[ResponseStreamEvent]:
    return list(client.responses.retrieve(response_id, stream=True))


def text(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def rest(house: House, response_id: str, seen: list[Any]) -> Iterator[ResponseStreamEvent]:
    """Ask with a new client: the pool of an old one may hold a connection to a process that is gone."""
    after = seen[-1].sequence_number if seen else openai.omit
    yield from house.client().responses.retrieve(response_id, stream=True, starting_after=after)


@pytest.mark.parametrize("blow", ["kill", "stop"])
def test_the_api_is_killed_and_the_client_resumes(house: House, blow: str) -> None:
    """The API gets SIGKILL, or SIGTERM, in mid-answer, and the client asks the next one for the rest."""
    response_id = started(house.client())
    seen: list[Any] = []
    with contextlib.suppress(openai.APIConnectionError):
        # What was on its way when the API went still comes.
        for number, event in enumerate(rest(house, response_id, seen)):
            seen.append(event)
            if number == 4 and blow == "kill":
                house.kill("api")
            elif number == 4:
                assert house.stop("api") in (0, -signal.SIGTERM)
    house.start("api")
    house.wait_for_api()
    seen += rest(house, response_id, seen)
    assert seen[-1].type in ("response.incomplete", "response.completed")
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert text(seen) == stored_text(house, response_id) == seen[-1].response.output_text
    assert seen == whole(house.client(), response_id)


@pytest.mark.parametrize("blow", ["kill", "stop"])
def test_the_worker_dies_and_the_same_stream_goes_on(house: House, blow: str) -> None:
    """The SDK's own helper, which checks the order of events, reads through to its final response."""
    client = house.client()
    seen: list[Any] = []
    try:
        with client.responses.stream(
            model="default", input=STORY, background=True, temperature=0.9, max_output_tokens=TOKENS
        ) as events:
            for event in events:
                seen.append(event)
                if len(seen) == 30:
                    if blow == "kill":
                        house.kill("worker")
                    else:
                        assert house.stop("worker") == 0
                    house.start("worker-2")
    finally:
        house.back_to_one_worker()
    last = seen[-1]
    # A sampled story may end by itself.
    assert last.type in ("response.incomplete", "response.completed")
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert text(seen) == stored_text(house, last.response.id) == last.response.output_text
    assert 0 < last.response.usage.output_tokens <= TOKENS
    again = whole(client, last.response.id)
    assert [event.type for event in again] == [event.type for event in seen]
    assert text(again) == text(seen)


def test_two_hundred_cuts_of_one_log(house: House) -> None:
    client = house.client()
    response_id = started(client)
    log = whole(client, response_id)
    assert text(log) == stored_text(house, response_id)
    chance = random.Random(5)
    for cut in (chance.randrange(len(log) + 3) for _ in range(200)):
        assert list(client.responses.retrieve(response_id, stream=True, starting_after=cut)) == log[cut + 1 :]

"""The official Python client, blocking and asynchronous, against the running stack."""

from __future__ import annotations

import asyncio

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.acceptance.house import House
from tests.conformance import tour
from tests.conformance.calling import Client, client_of, closed
from tests.conformance.witness import Witness
from tests.receiver import Receiver


async def go(kind: type[Client], part: tour.Part, url: str, api_key: str, receiver: Receiver) -> None:
    client = client_of(kind, url, api_key)
    try:
        await part(client, receiver)
    finally:
        await closed(client)


@pytest.mark.parametrize("part", tour.PARTS, ids=lambda part: part.__name__)
def test_blocking(part: tour.Part, sqlite_house: House, witness: Witness, receiver: Receiver) -> None:
    asyncio.run(go(OpenAI, part, witness.url, sqlite_house.api_key, receiver))


@pytest.mark.whole
@pytest.mark.parametrize("part", tour.PARTS, ids=lambda part: part.__name__)
def test_awaited(
    part: tour.Part, postgres_house: House, postgres_witness: Witness, receiver: Receiver
) -> None:
    asyncio.run(go(AsyncOpenAI, part, postgres_witness.url, postgres_house.api_key, receiver))

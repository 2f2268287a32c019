"""The three calls of the model card's Quickstart, through the whole service.

They run against the demo model, and against a real checkpoint too when QWENQ_MODEL names one.
"""

from __future__ import annotations

import re

import pytest
from openai import OpenAI
from openai.types.responses import Response

from tests.acceptance.house import House


@pytest.fixture(params=["sqlite_house", "real_house"], ids=["demo", "QWENQ_MODEL"])
def client(request: pytest.FixtureRequest) -> OpenAI:
    house: House = request.getfixturevalue(request.param)
    return house.client()


def ask(client: OpenAI, system: str | None, user: str) -> Response:
    return client.responses.create(
        model="default", instructions=system, input=user, temperature=0, max_output_tokens=48
    )


def test_greeting(client: OpenAI) -> None:
    answer = ask(client, None, "Hello")
    assert answer.status == "completed"
    assert answer.output_text.startswith("Hello")


def test_persona_by_system_prompt(client: OpenAI) -> None:
    answer = ask(client, "You are a pirate. Always talk like a pirate.", "Hello")
    # In 32 bits it is a captain of pirates; in 8 bits, with AVX2 alone, it says "welcome aboard".
    assert re.search("pirate|captain|ahoy|matey|aboard", answer.output_text, re.IGNORECASE)
    assert answer.output_text != ask(client, None, "Hello").output_text


def test_compliments_by_system_prompt(client: OpenAI) -> None:
    answer = ask(
        client,
        "You will write beautiful compliments according to needs",
        "My colleague works diligently",
    )
    assert re.search("dedicated|hardworking|excellent|great|team", answer.output_text, re.IGNORECASE)

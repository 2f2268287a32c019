"""Structured output as the official client asks for it, from the real service and the real small model."""

from __future__ import annotations

import json
from typing import Any, Literal

import pydantic

from tests.acceptance.house import House

ASKED = "Invent a person. Answer in JSON with name, age and job."


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=40)
    age: int = pydantic.Field(ge=0, le=120)
    job: Literal["smith", "baker", "painter"]


def test_answers_are_parsed_by_the_client(sqlite_house: House) -> None:
    client = sqlite_house.client()
    for seed in range(2):
        response = client.responses.parse(
            model="default", input=ASKED, text_format=Person, temperature=1, extra_body={"seed": seed}
        )
        assert response.status == "completed"
        assert isinstance(response.output_parsed, Person)
        assert response.text is not None
        assert response.text.format is not None
        assert response.text.format.type == "json_schema"


def test_any_object_and_one_that_is_cut(sqlite_house: House) -> None:
    """What is cut is incomplete, not valid, as OpenAI's own."""
    client = sqlite_house.client()
    text: Any = {"format": {"type": "json_object"}}
    response = client.responses.create(
        model="default", input=ASKED, text=text, temperature=0, max_output_tokens=4
    )
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text.startswith("{")


def test_a_worker_dies_within_an_object_and_another_ends_it(sqlite_house: House) -> None:
    client = sqlite_house.client()
    seen: list[Any] = []
    schema = {
        "type": "array",
        "items": {"type": "string", "minLength": 20, "maxLength": 30},
        "minItems": 8,
        "maxItems": 8,
    }
    text: Any = {"format": {"type": "json_schema", "name": "lines", "schema": schema, "strict": True}}
    try:
        with client.responses.stream(
            model="default",
            input="Eight lines of a poem, in JSON.",
            background=True,
            text=text,
            temperature=1,
        ) as events:
            for event in events:
                seen.append(event)
                if len(seen) == 20:
                    sqlite_house.kill("worker")
                    sqlite_house.start("worker-2")
            final = events.get_final_response()
    finally:
        sqlite_house.back_to_one_worker()
    assert final.status == "completed"
    lines = json.loads(final.output_text)
    assert [20 <= len(line) <= 30 for line in lines] == [True] * 8
    deltas = [event.delta for event in seen if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text

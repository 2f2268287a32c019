"""What the engine has computed is found again: by a conversation's next turn and by its project, by nobody else."""

from __future__ import annotations

from itertools import pairwise

from openai import OpenAI
from openai.types.responses import Response

from storage import keys
from tests.acceptance.house import House

BLOCK = 16
SYSTEM = "You are a patient teacher. " * 8


def ask(client: OpenAI, text: str, **fields: object) -> Response:
    # Sampled hot: what is generated is seldom what a tokenizer would make of its text.
    return client.responses.create(  # type: ignore[call-overload,no-any-return]
        model="default",
        instructions=SYSTEM,
        input=text,
        max_output_tokens=40,
        temperature=1.5,
        top_p=1.0,
        **fields,
    )


def cached(response: Response) -> int:
    assert response.usage is not None
    return response.usage.input_tokens_details.cached_tokens


def test_the_next_turn_finds_all_that_was_said(sqlite_house: House) -> None:
    client = sqlite_house.client()
    conversation = client.conversations.create().id
    turns = [ask(client, f"Tell me about {number}.", conversation=conversation) for number in range(4)]
    for before, after in pairwise(turns):
        assert before.usage is not None
        # All of it but the last token, which was never an input.
        assert cached(after) >= (before.usage.total_tokens - 1) // BLOCK * BLOCK


def test_a_project_shares_its_system_prompt_and_no_other_project_finds_it(sqlite_house: House) -> None:
    first = ask(sqlite_house.client(), "What is a star?")
    second = ask(sqlite_house.client(), "What is a moon?")
    assert first.usage is not None
    shared = first.usage.input_tokens - 20  # the questions and what frames them
    assert cached(second) >= shared // BLOCK * BLOCK > BLOCK
    with sqlite_house.database.begin() as session:
        other = keys.create(session, "another project", "acceptance").secret
    stranger = sqlite_house.client().with_options(api_key=other)
    assert cached(ask(stranger, "What is a star?")) == 0
    assert cached(ask(stranger, "What is a moon?")) >= shared // BLOCK * BLOCK

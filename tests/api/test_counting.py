"""POST /v1/responses/input_tokens: the length of the prompt that a worker would build."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.responses import InputTokenCountResponse

from api.settings import ApiSettings
from qwenq.counting import CheckpointCounter
from storage import history
from storage.database import Database
from storage.models import Response
from tests.api.fake_worker import FakeWorker
from tests.api.serving import Served, serving
from tests.api.strict import check
from tests.model.tiny import tiny_model
from worker import prompt
from worker.model.config import load_generation_defaults
from worker.model.tokenizer import Tokenizer

CONTEXT = 2000
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
Count = Callable[[Any], int]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("counted"))


@pytest.fixture
def served(settings: ApiSettings, checkpoint: Path) -> Iterator[Served]:
    with serving(settings, CheckpointCounter(checkpoint, CONTEXT)) as running:
        yield running


@pytest.fixture
def in_a_worker(database: Database, checkpoint: Path) -> Callable[[str], int]:
    """How long a worker's prompt for a stored response is."""
    tokenizer, defaults = Tokenizer.load(checkpoint), load_generation_defaults(checkpoint)

    def count(response_id: str) -> int:
        with database.read() as session:
            row = session.get_one(Response, response_id)
            said = history.load(session, row)
        built = prompt.build(
            said, row.request, tokenizer=tokenizer, defaults=defaults, context_length=CONTEXT
        )
        return len(built.ids)

    return count


def test_the_count_is_the_length_of_the_workers_prompt(
    client: OpenAI, http: httpx.Client, worker: FakeWorker, in_a_worker: Callable[[str], int]
) -> None:
    shown = http.post("/v1/responses/input_tokens", json={"model": "default", "input": "Hello"}).json()
    check(InputTokenCountResponse, shown)
    conversation = client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "Remember 7."}]
    )
    first = client.responses.create(input="Hello", background=True)
    worker.answer("Hi!")
    for asked in (
        {"input": "Hello"},
        {"input": "Hello", "instructions": "Be brief."},
        {"input": [{"role": "developer", "content": "a"}, {"role": "user", "content": "你好"}]},
        {"input": "And?", "conversation": conversation.id},
        {"input": "And?", "previous_response_id": first.id, "truncation": "auto"},
        {"input": "Hello", "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"input": "Hello", "text": {"format": {"type": "json_object"}}},
    ):
        count = client.responses.input_tokens.count(**asked).input_tokens  # type: ignore[arg-type]
        stored = client.responses.create(**asked, background=True)  # type: ignore[call-overload]
        assert count == in_a_worker(stored.id), asked
    nothing = client.responses.input_tokens.count().input_tokens
    with_history = client.responses.input_tokens.count(conversation=conversation.id).input_tokens
    assert 0 < nothing < with_history


def test_what_is_refused(
    http: httpx.Client, client: OpenAI, stranger: httpx.Client, rows: Callable[[], dict[str, int]]
) -> None:
    waiting = client.responses.create(input="Hello", background=True).id
    before = rows()
    for body, status, param in (
        ({"input": ""}, 400, "input"),
        ({"input": [{"role": "user"}]}, 400, "input[0].content"),
        ({"input": "a", "temperature": 1}, 400, "temperature"),
        ({"input": "a", "personality": "friendly"}, 400, "personality"),
        ({"input": "a", "model": "gpt"}, 404, "model"),
        ({"input": "a", "conversation": "conv_x"}, 404, "conversation"),
        ({"input": "a", "previous_response_id": "resp_x"}, 404, "previous_response_id"),
        ({"input": "a", "previous_response_id": waiting}, 409, "previous_response_id"),
        ({"input": "a " * 5000}, 400, "input"),
    ):
        answer = http.post("/v1/responses/input_tokens", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), (body, answer.text)
    assert http.post("/v1/responses/input_tokens", json=[]).status_code == 400
    assert http.post("/v1/responses/input_tokens").status_code == 400
    theirs = stranger.post("/v1/responses/input_tokens", json={"previous_response_id": waiting})
    assert theirs.status_code == 404
    assert rows() == before


def test_it_needs_no_torch() -> None:
    code = "import qwenq.counting, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("counter", [None, CheckpointCounter(Path("/nowhere"), CONTEXT)])
def test_without_a_checkpoint_it_says_so_once(
    settings: ApiSettings, api_key: str, counter: CheckpointCounter | None
) -> None:
    with (
        serving(settings, counter) as running,
        OpenAI(base_url=f"{running.url}/v1", api_key=api_key, max_retries=3) as client,
        pytest.raises(openai.InternalServerError) as refused,
    ):
        client.responses.input_tokens.count(input="Hello")
    assert (refused.value.status_code, refused.value.code) == (503, "tokenizer_unavailable")
    assert refused.value.response.request.headers["x-stainless-retry-count"] == "0"

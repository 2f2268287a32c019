"""Chat Completions: jobs like any other behind OpenAI's older shape, in one piece, in chunks, and stored."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from redis import Redis
from sqlalchemy import select, update

from api.settings import ApiSettings
from storage import clock, retention, scores, terminal
from storage.database import Database
from storage.models import Item, Response
from storage.retention import Keep
from tests.api.fake_worker import FakeWorker, until
from tests.api.serving import Served
from tests.api.speaker import Speaker, entry
from tests.api.strict import check
from tests.receiver import receiving

HELLO: Any = [{"role": "user", "content": "Hello"}]
USAGE = ["usage.completion_tokens_details", "usage.prompt_tokens_details"]
NO_DETAILS = [
    *(
        f"{USAGE[0]}.{name}_tokens"
        for name in ("accepted_prediction", "audio", "rejected_prediction", "text")
    ),
    *(f"{USAGE[1]}.{name}_tokens" for name in ("audio", "image", "text")),
]
LEFT_OUT = (
    "moderation",
    *(f"choices[].message.{name}" for name in ("audio", "function_call", "tool_calls")),
    *NO_DETAILS,
)
PIECES = ["Once", "", " upon", " a", "", " time."]
SHOWN = scores.shown([entry(place, piece) for place, piece in enumerate(PIECES)])

Speak = Callable[..., Speaker]


@pytest.fixture
def speak(database: Database, redis: Redis) -> Speak:
    return lambda **options: Speaker(database, redis, **options)


def post(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"messages": HELLO, **body})


class Pending:
    """A request that waits for its answer in a thread."""

    def __init__(self, http: httpx.Client, headers: dict[str, str] | None = None, **body: Any) -> None:
        self._thread = threading.Thread(target=self._send, args=(http, headers, body))
        self.answer: httpx.Response | None = None
        self._thread.start()

    def _send(self, http: httpx.Client, headers: dict[str, str] | None, body: dict[str, Any]) -> None:
        self.answer = http.post(
            "/v1/chat/completions", json={"messages": HELLO, **body}, headers=headers or {}
        )

    def result(self) -> httpx.Response:
        self._thread.join(20)
        assert self.answer is not None, "no answer came"
        return self.answer


def jobs(database: Database) -> list[Response]:
    with database.read() as session:
        return list(session.scalars(select(Response).order_by(Response.choice)))


def waits_for(database: Database, count: int) -> None:
    until(lambda: len(jobs(database)) == count)


@contextmanager
def chunks_of(http: httpx.Client, **body: Any) -> Iterator[list[Any]]:
    """The chunks of a stream, complete when the block is left."""
    found: list[Any] = []
    with http.stream(
        "POST", "/v1/chat/completions", json={"messages": HELLO, "stream": True, **body}
    ) as answer:
        assert answer.status_code == 200
        yield found
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    found += [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_answer_is_exactly_the_sdks(http: httpx.Client, worker: FakeWorker) -> None:
    with worker.at_work("Hi there."):
        shown = post(http, model="default", metadata={"a": "b"}, service_tier="flex").json()
    check(ChatCompletion, shown, left_out=LEFT_OUT)
    assert shown["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi there.", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert shown["usage"]["total_tokens"] == 10
    assert (shown["metadata"], shown["service_tier"]) == ({"a": "b"}, "flex")


def test_what_the_worker_reads(
    http: httpx.Client, database: Database, speak: Speak, settings: ApiSettings
) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "!"}]},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": "Well", "tool_calls": [], "annotations": [], "audio": None},
        {"role": "user", "content": "And?"},
    ]
    asked = Pending(
        http,
        messages=messages,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.7,
        top_k=5,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"7": -100, "8": 2},
        logprobs=True,
        top_logprobs=3,
        seed=2**53 - 1,
        stop="END",
        n=2,
        user="u",
    )
    waits_for(database, 2)
    first, second = speak(scored=True), speak(scored=True)
    for speaker in (first, second):
        speaker.say("a")
        speaker.finish(incomplete=speaker is second)
    shown = asked.result().json()
    request = first.response.request
    assert request == second.response.request
    assert request == {
        "model": settings.model_name,
        "instructions": None,
        "background": False,
        "followed": False,
        "store": False,
        "metadata": {},
        "max_output_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.7,
        "top_k": 5,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"7": -100, "8": 2},
        "logprobs": 3,
        "top_logprobs": 3,
        "seed": 2**53 - 1,
        "stop": ["END"],
        "truncation": "disabled",
        "text": {"format": {"type": "text"}},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "prompt_cache_key": None,
        "prompt_cache_retention": None,
        "safety_identifier": None,
        "user": "u",
    }
    assert [first.response.seed, second.response.seed] == [2**53 - 1, 0]
    with database.read() as session:
        items = session.scalars(select(Item).where(Item.response_id == first.id, ~Item.is_output)).all()
        assert session.scalars(select(Item).where(Item.response_id == second.id, ~Item.is_output)).all() == []
    said = [
        (item.body["role"], "".join(part["text"] for part in item.body["content"]))
        for item in sorted(items, key=lambda item: item.ordinal or 0)
    ]
    assert said == [
        ("developer", "Be brief."),
        ("user", "Hello!"),
        ("assistant", "No."),
        ("assistant", "Well"),
        ("user", "And?"),
    ]
    assert [choice["finish_reason"] for choice in shown["choices"]] == ["stop", "length"]
    # The prompt of both is counted once.
    assert (shown["usage"]["prompt_tokens"], shown["usage"]["completion_tokens"]) == (7, 2)
    check(ChatCompletion, shown, left_out=LEFT_OUT)


def test_chunks_are_exactly_the_sdks(http: httpx.Client, database: Database, speak: Speak) -> None:
    with chunks_of(
        http, n=2, logprobs=True, top_logprobs=2, stream_options={"include_usage": True}
    ) as chunks:
        first, second = speak(scored=True), speak(scored=True)
        first.say(*PIECES)
        second.say("No", "", " more")
        second.finish("!", incomplete=True)
        first.finish()
    for chunk in chunks[:-1]:
        names = ["audio", "function_call", "tool_calls"]
        (choice,) = chunk["choices"]
        names += [name for name in ("content", "refusal", "role") if name not in choice["delta"]]
        check(
            ChatCompletionChunk,
            chunk,
            left_out=["moderation", "obfuscation", *(f"choices[].delta.{name}" for name in names)],
        )
        assert chunk["usage"] is None
    check(ChatCompletionChunk, chunks[-1], left_out=["moderation", "obfuscation", *NO_DETAILS])
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 9)
    assert {chunk["id"] for chunk in chunks} == {first.id}
    by_choice: list[list[Any]] = [[], []]
    for chunk in chunks[:-1]:
        by_choice[chunk["choices"][0]["index"]].append(chunk["choices"][0])
    assert [each["delta"].get("content") for each in by_choice[0]] == [
        "",
        *(piece for piece in PIECES if piece),
        None,
    ]
    assert [each["delta"].get("content") for each in by_choice[1]] == ["", "No", " more", "!", None]
    assert [each["finish_reason"] for each in by_choice[1]] == [None] * 4 + ["length"]
    assert by_choice[0][-1]["finish_reason"] == "stop"
    told = [token for each in by_choice[0] if each["logprobs"] for token in each["logprobs"]["content"]]
    assert told == SHOWN


def test_a_stream_goes_on_with_the_next_attempt(http: httpx.Client, speak: Speak) -> None:
    with chunks_of(http) as chunks:
        first = speak()
        first.say(*PIECES[:3])
        first.vanish(checkpoint=True)
        second = speak()
        second.say(*PIECES[3:])
        second.finish()
    text = "".join(each["delta"].get("content") or "" for chunk in chunks for each in chunk["choices"])
    assert text == "".join(PIECES)
    assert len(chunks) == 2 + len([piece for piece in PIECES if piece])
    assert not any("usage" in chunk for chunk in chunks)


def test_an_answer_that_fails_is_an_error_and_not_tried_again(
    client: OpenAI, http: httpx.Client, database: Database, worker: FakeWorker
) -> None:
    failed = Pending(http, n=2)
    waits_for(database, 2)
    worker.fail()
    worker.answer()
    answer = failed.result()
    assert (answer.status_code, answer.headers["x-should-retry"]) == (500, "false")
    assert answer.json()["error"] == {
        "message": "It was lost.",
        "type": "server_error",
        "param": None,
        "code": "worker_lost",
    }
    stream = client.chat.completions.create(model="default", messages=HELLO, stream=True)
    worker.fail()
    with pytest.raises(openai.APIError, match="It was lost"):
        list(stream)


@pytest.mark.parametrize(
    ("cause", "param"), [("context_length_exceeded", "messages"), ("invalid_logit_bias", "logit_bias")]
)
def test_what_only_the_worker_can_judge_names_its_parameter(
    http: httpx.Client, database: Database, worker: FakeWorker, cause: str, param: str
) -> None:
    asked = Pending(http)
    waits_for(database, 1)
    claimed = worker.claim()
    assert claimed is not None
    with database.begin() as session:
        failure = terminal.Failure("invalid_prompt", cause, "Too much.")
        terminal.close_failed(session, claimed.id, claimed.attempt, failure)
    answer = asked.result()
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "Too much.",
        "type": "invalid_request_error",
        "param": param,
        "code": cause,
    }


def test_who_goes_away_cancels_all_answers(served: Served, api_key: str, database: Database) -> None:
    headers = {"authorization": f"Bearer {api_key}"}
    body = {"messages": HELLO, "n": 2}
    for stream in (False, True):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{served.url}/v1/chat/completions",
                json={**body, "stream": stream},
                headers=headers,
                timeout=1,
            )
    until(lambda: {job.status for job in jobs(database)} == {"cancelled"})
    assert len(jobs(database)) == 4


def test_a_key_brings_the_same_completion_again(
    http: httpx.Client, database: Database, worker: FakeWorker
) -> None:
    headers = {"idempotency-key": "k1"}
    asked = Pending(http, headers, n=2)
    waits_for(database, 2)
    again = Pending(http, headers, n=2)
    worker.answer("One")
    worker.answer("Two")
    shown = asked.result().json()
    assert shown == again.result().json()
    assert [each["message"]["content"] for each in shown["choices"]] == ["One", "Two"]
    assert len(jobs(database)) == 2
    other = http.post("/v1/chat/completions", json={"messages": HELLO, "n": 3}, headers=headers)
    assert other.status_code == 409


def test_stored_completions(
    client: OpenAI, http: httpx.Client, stranger: httpx.Client, worker: FakeWorker, database: Database
) -> None:
    with worker.at_work("Hi."):
        made = [
            post(http, store=True, n=number + 1, metadata={"number": str(number), "of": "mine"}).json()
            for number in range(3)
        ]
        hidden = post(http, metadata={"of": "mine"}).json()
        long = post(
            http, store=True, messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]
        ).json()
    for each in made:
        assert http.get(f"/v1/chat/completions/{each['id']}").json() == each
    listed = client.chat.completions.list(limit=2)
    assert [each.id for each in listed] == [*(each["id"] for each in made), long["id"]]
    assert [each.id for each in client.chat.completions.list(order="desc")][::-1] == [
        each.id for each in listed
    ]
    found = client.chat.completions.list(metadata={"number": "1", "of": "mine"}).data
    assert [each.id for each in found] == [made[1]["id"]]
    assert client.chat.completions.list(model="another").data == []
    for url in (hidden["id"], "chatcmpl_none"):
        assert http.get(f"/v1/chat/completions/{url}").status_code == 404
    assert stranger.get(f"/v1/chat/completions/{made[0]['id']}").status_code == 404
    # They are no responses, and responses are no completions.
    assert http.get(f"/v1/responses/{made[0]['id']}").status_code == 404
    assert http.get("/v1/responses").json()["data"] == []

    changed = client.chat.completions.update(made[2]["id"], metadata={"number": "9"})
    assert changed.metadata == {"number": "9"}
    assert [each.id for each in client.chat.completions.list(metadata={"number": "9"})] == [made[2]["id"]]

    (message,) = client.chat.completions.messages.list(made[0]["id"]).data
    assert (message.role, message.content, message.content_parts) == ("user", "Hello", None)
    (message,) = client.chat.completions.messages.list(long["id"]).data
    assert message.content is None
    assert [part.to_dict() for part in message.content_parts or []] == [{"type": "text", "text": "a"}] * 2

    deleted = http.delete(f"/v1/chat/completions/{made[2]['id']}").json()
    assert deleted == {"id": made[2]["id"], "object": "chat.completion.deleted", "deleted": True}
    assert http.get(f"/v1/chat/completions/{made[2]['id']}").status_code == 404
    with database.read() as session:
        gone = select(Response.id).where(Response.deleted_at.is_not(None))
        assert len(session.scalars(gone).all()) == 3
        assert session.scalars(select(Item.id).where(Item.response_id.in_(gone))).all() == []


def test_what_is_not_stored_is_gone_after_a_day(
    http: httpx.Client, worker: FakeWorker, database: Database
) -> None:
    with worker.at_work("Hi."):
        kept = post(http, store=True).json()["id"]
        post(http, n=2)
    with database.begin() as session:
        session.execute(update(Response).values(completed_at=clock.now() - 2 * retention.DAY_SECONDS))
    gone = retention.purge(database, Keep(None, None, 30))
    assert gone["unstored_responses"] == 2
    assert [job.id for job in jobs(database)] == [kept]


def test_a_webhook_tells_of_its_end(http: httpx.Client, worker: FakeWorker, database: Database) -> None:
    with receiving() as receiver, worker.at_work("Hi."):
        made = post(http, webhook={"url": receiver.url}).json()
    with database.read() as session:
        (job,) = session.scalars(select(Response)).all()
    assert job.webhook is not None
    assert job.id == made["id"]
    refused = post(http, webhook={"url": "http://127.0.0.1:9/"}, n=2)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "webhook")


UNSUPPORTED = "unsupported_parameter"
UNKNOWN = "unknown_parameter"
TYPE = "invalid_type"
VALUE = "invalid_value"
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"functions": [{"name": "f"}]}, "functions", UNSUPPORTED),
    ({"function_call": {"name": "f"}}, "function_call", UNSUPPORTED),
    ({"audio": {"voice": "a", "format": "wav"}}, "audio", UNSUPPORTED),
    ({"modalities": ["text", "audio"]}, "modalities", UNSUPPORTED),
    ({"prediction": {"type": "content", "content": "a"}}, "prediction", UNSUPPORTED),
    ({"moderation": {"model": "m"}}, "moderation", UNSUPPORTED),
    ({"prompt_cache_options": {"ttl": "30m"}}, "prompt_cache_options", UNSUPPORTED),
    ({"reasoning_effort": "low"}, "reasoning_effort", UNSUPPORTED),
    ({"verbosity": "low"}, "verbosity", UNSUPPORTED),
    ({"web_search_options": {"search_context_size": "low"}}, "web_search_options", UNSUPPORTED),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type", UNSUPPORTED),
    ({"messages": [{"role": "user", "content": "a", "name": "x"}]}, "messages[0].name", UNSUPPORTED),
    ({"max_token": 3}, "max_token", UNKNOWN),
    ({"input": "a"}, "input", UNKNOWN),
    ({"messages": [{"role": "user", "content": "a", "type": "message"}]}, "messages[0].type", UNKNOWN),
    ({"stream": True, "stream_options": {"include": True}}, "stream_options.include", UNKNOWN),
    ({"messages": None}, "messages", TYPE),
    ({"messages": "Hello"}, "messages", TYPE),
    ({"messages": []}, "messages", "array_below_min_length"),
    ({"messages": ["a"]}, "messages[0]", TYPE),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", VALUE),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]},
        "messages[0].content[0].type",
        VALUE,
    ),
    ({"logprobs": 3}, "logprobs", TYPE),
    ({"top_logprobs": 3}, "top_logprobs", VALUE),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"logit_bias": {"a": 3}}, "logit_bias", VALUE),
    ({"logit_bias": {"7": 101}}, "logit_bias.7", "decimal_above_max_value"),
    ({"logit_bias": []}, "logit_bias", TYPE),
    ({"presence_penalty": 3}, "presence_penalty", "decimal_above_max_value"),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 129}, "n", "integer_above_max_value"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": 8193}, "max_tokens", "integer_above_max_value"),
    ({"max_completion_tokens": 8193}, "max_completion_tokens", "integer_above_max_value"),
    ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens", "mutually_exclusive_parameters"),
    ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
    ({"stream_options": {"include_usage": True}}, "stream_options", VALUE),
    ({"service_tier": "scale"}, "service_tier", VALUE),
]
HARMLESS: list[dict[str, Any]] = [
    {"functions": [], "function_call": "none", "modalities": ["text"], "reasoning_effort": "none"},
    {
        "stop": [],
        "logit_bias": {},
        "audio": None,
        "n": None,
        "store": None,
        "logprobs": False,
        "metadata": {},
    },
    {"prompt_cache_key": "k", "safety_identifier": "s", "parallel_tool_calls": True, "truncation": "auto"},
]


def test_bad_requests_name_their_parameter_and_store_nothing(
    http: httpx.Client, rows: Callable[[], dict[str, int]]
) -> None:
    before = rows()
    wrong = []
    for change, param, code in BAD:
        answer = post(http, **change)
        error = answer.json().get("error") or {}
        if (answer.status_code, error.get("param"), error.get("code")) != (400, param, code):
            wrong.append((str(change)[:100], answer.status_code, error))
    assert not wrong
    assert rows() == before
    missing = http.post("/v1/chat/completions", json={"model": "another", "messages": HELLO})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_what_asks_for_nothing_is_let_through(http: httpx.Client, worker: FakeWorker) -> None:
    with worker.at_work():
        for body in HARMLESS:
            assert post(http, **body).status_code == 200, body


def test_queries_name_what_is_wrong_with_them(http: httpx.Client) -> None:
    for query, param in (
        ({"limit": "0"}, "limit"),
        ({"order": "up"}, "order"),
        ({"metadata[a]": "x" * 513}, "metadata.a"),
        ({"colour": "red"}, "colour"),
    ):
        answer = http.get("/v1/chat/completions", params=query)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert http.get("/v1/chat/completions", params={"after": "chatcmpl_none"}).status_code == 404

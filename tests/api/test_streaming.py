"""The event stream of a response: the same events with the same numbers for every reader, whenever it joins."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import ResponseStreamEvent
from redis import Redis

from storage import stream
from storage.database import Database
from storage.models import Response
from tests.api.fake_worker import FakeWorker, until
from tests.api.reading import Reader, whole
from tests.api.serving import Served
from tests.api.speaker import Speaker
from tests.api.strict import check
from tests.api.test_responses import ANSWERED, EXTENSIONS, LEFT_OUT

PIECES = [
    "Once",
    "",
    " upon",
    " a",
    "",
    " time",
    ",",
    " 很",
    "",
    "久👍",
    " lived",
    "\u2028\n",
    " a",
    " king.",
]
TEXT = "".join(PIECES)
KINDS = {
    get_args(each.model_fields["type"].annotation)[0]: each
    for each in get_args(get_args(ResponseStreamEvent)[0])
}
BEGINNING = ["created", "queued", "in_progress", "output_item.added", "content_part.added"]
DELTAS = ["output_text.delta"] * len([piece for piece in PIECES if piece])
ANSWER_ENDS = ["output_text.done", "content_part.done", "output_item.done"]

Ask = Callable[..., str]


def short(types: list[str]) -> list[str]:
    return [each.removeprefix("response.") for each in types]


def strictly(event: dict[str, Any]) -> None:
    """Assert that an event is exactly the SDK's: no key too many, none left out."""
    kind = KINDS[event["type"]]
    if "response" in event:
        ended = event["response"]["status"] in ("completed", "incomplete")
        left_out = ANSWERED if ended else LEFT_OUT
        if event["response"]["error"]:
            left_out = (*left_out, "error.misalignment", "error.param")
        check(
            kind,
            event,
            extensions=[f"response.{path}" for path in EXTENSIONS],
            left_out=[f"response.{path}" for path in left_out],
        )
    elif "item" in event:
        check(kind, event, left_out=["item.phase"])
    else:
        check(kind, event)


@pytest.fixture
def ask(http: httpx.Client) -> Ask:
    def submit(**body: Any) -> str:
        made = http.post("/v1/responses", json={"input": "a", "background": True, **body})
        return str(made.json()["id"])

    return submit


@pytest.fixture
def speak(database: Database, redis: Redis) -> Callable[..., Speaker]:
    return lambda **options: Speaker(database, redis, **options)


def test_every_event_of_an_answer_in_order_and_exactly_the_sdks(
    http: httpx.Client, ask: Ask, speak: Callable[..., Speaker]
) -> None:
    response_id = ask(instructions="Be brief.", metadata={"a": "b"})
    reader = Reader(http, response_id)
    speaker = speak()
    speaker.say(*PIECES)
    speaker.finish()
    events = [json.loads(event) for event in reader.to_end()]
    assert reader.done
    assert short(reader.types) == [*BEGINNING, *DELTAS, *ANSWER_ENDS, "completed"]
    assert reader.numbers == list(range(len(events)))
    assert reader.text == TEXT == events[-1]["response"]["output"][0]["content"][0]["text"]
    assert events[-1]["response"] == http.get(f"/v1/responses/{response_id}").json()
    assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]
    for event in events:
        strictly(event)
    assert reader.headers["content-type"].startswith("text/event-stream")
    assert "no-cache" in reader.headers["cache-control"]
    assert reader.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("end", ["incomplete", "failed", "cancelled"])
def test_answers_that_end_otherwise_keep_what_was_seen(
    http: httpx.Client, ask: Ask, speak: Callable[..., Speaker], end: str
) -> None:
    response_id = ask()
    reader = Reader(http, response_id)
    speaker = speak()
    speaker.say(*PIECES)
    reader.has(len(BEGINNING) + len(DELTAS))
    if end == "incomplete":
        speaker.finish("half", incomplete=True)
    elif end == "failed":
        speaker.fail()
    else:
        speaker.cancel()
    events = [json.loads(event) for event in reader.to_end()]
    assert reader.done
    done = [*DELTAS[:1], *ANSWER_ENDS] if end == "incomplete" else []
    assert short(reader.types) == [*BEGINNING, *DELTAS, *done, end]
    assert reader.text == TEXT + ("half" if end == "incomplete" else "")
    for event in events:
        if event["type"] in KINDS:
            strictly(event)
    assert end == "cancelled" or events[-1]["type"] in KINDS
    assert whole(http, response_id) == reader.events


def test_responses_that_nobody_took_have_a_short_log(
    http: httpx.Client, ask: Ask, worker: FakeWorker, client: OpenAI
) -> None:
    response_id = ask()
    reader = Reader(http, response_id)
    reader.has(2)
    client.responses.cancel(response_id)
    assert short([json.loads(event)["type"] for event in reader.to_end()]) == [
        "created",
        "queued",
        "cancelled",
    ]
    assert reader.done
    assert whole(http, response_id) == reader.events

    failed = ask()
    worker.fail()
    assert short([json.loads(event)["type"] for event in whole(http, failed)]) == [*BEGINNING[:3], "failed"]


def test_readers_who_join_at_any_time_see_the_same_bytes(
    http: httpx.Client, ask: Ask, speak: Callable[..., Speaker]
) -> None:
    response_id = ask()
    readers = [Reader(http, response_id)]
    speaker = speak()
    for number, piece in enumerate(PIECES):
        readers.append(Reader(http, response_id))
        speaker.say(piece)
        if number % 5 == 4:
            speaker.checkpoint()
    readers.append(Reader(http, response_id))
    speaker.finish("!")
    readers.append(Reader(http, response_id))
    logs = [reader.to_end() for reader in readers]
    assert all(reader.done for reader in readers)
    assert len(logs[0]) == len(BEGINNING) + len(DELTAS) + 1 + len(ANSWER_ENDS) + 1
    assert all(log == logs[0] for log in logs)


def test_a_stream_resumes_behind_every_number_live_and_afterwards(
    http: httpx.Client, ask: Ask, speak: Callable[..., Speaker]
) -> None:
    response_id = ask()
    speaker = speak()
    speaker.say(*PIECES[:6])
    speaker.checkpoint()
    speaker.say(*PIECES[6:9])
    numbers = range(len(BEGINNING) + len(DELTAS) + 8)
    live = [Reader(http, response_id, number) for number in numbers]
    speaker.say(*PIECES[9:])
    speaker.finish()
    log = whole(http, response_id)
    assert len(log) < len(numbers)
    for number, reader in zip(numbers, live, strict=True):
        assert reader.to_end() == log[number + 1 :]
        assert reader.done
        assert whole(http, response_id, number) == log[number + 1 :]
    assert whole(http, response_id, 10**30) == []


def test_a_flush_of_redis_leaves_no_gap_and_repeats_nothing(
    http: httpx.Client, ask: Ask, speak: Callable[..., Speaker], redis: Redis
) -> None:
    response_id = ask()
    before = Reader(http, response_id)
    speaker = speak()
    speaker.say(*PIECES[:4])
    speaker.checkpoint()
    speaker.say(*PIECES[4:6])
    before.has(len(BEGINNING) + 4)
    redis.delete(stream.key(response_id))
    speaker.say(*PIECES[6:8])  # the stream begins anew behind tokens that SQL has not got yet
    between = Reader(http, response_id)
    between.has(len(BEGINNING) + 3)
    speaker.checkpoint()
    between.has(len(BEGINNING) + 6)
    speaker.say(*PIECES[8:])
    speaker.finish()
    assert before.to_end() == between.to_end() == whole(http, response_id)
    assert before.text == TEXT


def test_without_its_end_marker_a_stream_ends_all_the_same(
    http: httpx.Client, ask: Ask, speak: Callable[..., Speaker], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.POLL_SECONDS", 0.05)
    response_id = ask()
    reader = Reader(http, response_id)
    speaker = speak()
    speaker.say(*PIECES[:4])
    reader.has(len(BEGINNING) + 3)
    redis.delete(stream.key(response_id))
    speaker.say(*PIECES[4:], live=False)
    speaker.finish(tell=False)
    assert reader.to_end() == whole(http, response_id)
    assert reader.text == TEXT


def test_another_worker_goes_on_and_the_stream_with_it(
    http: httpx.Client, ask: Ask, speak: Callable[..., Speaker]
) -> None:
    response_id = ask()
    reader = Reader(http, response_id)
    first = speak()
    first.say(*PIECES[:3])
    first.checkpoint()
    first.say(*PIECES[3:5])
    reader.has(len(BEGINNING) + 3)
    first.vanish()  # as with SIGKILL: the live tail is ahead of SQL
    second = speak()
    assert second.response.attempt == 2
    assert second.pieces == PIECES[:5]
    joined = Reader(http, response_id)
    second.say(*PIECES[5:7])
    second.say(*PIECES[7:8], live=False)
    second.vanish(
        checkpoint=True
    )  # as with SIGTERM: SQL is ahead of the live tail, which goes on behind a gap
    third = speak()
    assert third.pieces == PIECES[:8]
    third.say(*PIECES[8:])
    third.finish()
    late = whole(http, response_id)
    assert reader.to_end() == joined.to_end() == late
    assert reader.text == TEXT
    assert short(reader.types).count("output_item.added") == 1


def test_a_reader_that_takes_nothing_holds_nobody_up_and_costs_no_memory(
    http: httpx.Client,
    served: Served,
    ask: Ask,
    speak: Callable[..., Speaker],
    monkeypatch: pytest.MonkeyPatch,
    api_key: str,
) -> None:
    from api import sse

    made: list[int] = []
    encode = sse.event
    monkeypatch.setattr("api.sse.event", lambda value: (made.append(1), encode(value))[1])
    response_id = ask()
    speaker = speak()
    headers = {"authorization": f"Bearer {api_key}"}
    with (
        httpx.Client(base_url=served.url, headers=headers, timeout=30) as other,
        other.stream("GET", f"/v1/responses/{response_id}?stream=true") as slow,
    ):
        pieces = ["x" * 50_000 + str(number) for number in range(600)]  # more than two sockets hold
        for number in range(0, 600, 50):
            speaker.say(*pieces[number : number + 50])
        alone = len(made)
        reader = Reader(http, response_id)
        reader.has(len(BEGINNING) + 600)
        assert alone < len(made) - 600 < 600  # the slow one was sent less than there is
        speaker.finish()
        fast = reader.to_end()
        lines = (line for line in slow.iter_lines() if line.startswith("data: {"))
        assert [line.removeprefix("data: ") for line in lines] == fast
    until(lambda: not served.services.live._watches)


def test_a_deleted_response_ends_its_streams_with_an_error(
    http: httpx.Client, ask: Ask, speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.POLL_SECONDS", 0.2)
    response_id = ask()
    reader = Reader(http, response_id)
    speaker = speak()
    speaker.say("a")
    reader.has(6)
    speaker.finish(tell=False)
    assert http.delete(f"/v1/responses/{response_id}").status_code == 200
    *_, last = [json.loads(event) for event in reader.to_end()]
    strictly(last)
    assert (last["type"], last["code"], last["sequence_number"]) == ("error", "response_deleted", 5)
    assert not reader.done
    assert http.get(f"/v1/responses/{response_id}?stream=true").status_code == 404


def test_another_project_reads_no_stream(stranger: httpx.Client, ask: Ask) -> None:
    answer = stranger.get(f"/v1/responses/{ask()}?stream=true")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_a_silent_stream_is_kept_open_with_comments(
    http: httpx.Client, ask: Ask, speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.streaming.HEARTBEAT_SECONDS", 0.05)
    reader = Reader(http, ask())
    until(lambda: len(reader.comments) >= 3)
    assert set(reader.comments) == {"ping"}
    speak().finish()
    reader.to_end()
    assert short(reader.types)[-1] == "completed"


@pytest.mark.parametrize(
    ("background", "key", "status"),
    [(False, None, "cancelled"), (True, None, "queued"), (False, "k", "queued")],
)
def test_a_caller_who_goes_away_cancels_what_belongs_to_his_connection(
    http: httpx.Client,
    served: Served,
    database: Database,
    background: bool,
    key: str | None,
    status: str,
) -> None:
    body = {"input": "a", "stream": True, "background": background}
    headers = {} if key is None else {"idempotency-key": key}
    reader = Reader(http, body={"json": body, "headers": headers})
    reader.has(2)
    reader.close()
    until(lambda: not served.services.live._watches)

    def standing() -> str:
        with database.read() as session:
            return str(session.query(Response).one().status)

    until(lambda: standing() == status)


def test_a_post_that_is_sent_again_streams_the_same_log(
    http: httpx.Client, speak: Callable[..., Speaker]
) -> None:
    post = {"json": {"input": "a", "stream": True}, "headers": {"idempotency-key": "k"}}
    first = Reader(http, body=post)
    first.has(2)
    first.close()
    second = Reader(http, body=post)
    speaker = speak()
    speaker.say(*PIECES)
    speaker.finish()
    assert second.to_end() == Reader(http, body=post).to_end()
    assert second.text == TEXT


def test_the_official_client_streams(
    client: OpenAI, speak: Callable[..., Speaker], http: httpx.Client
) -> None:
    with ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            speaker = speak()
            for piece in PIECES:
                speaker.say(piece)
            speaker.finish()

        for background in (False, True):
            with client.responses.create(
                model="default", input="a", stream=True, background=background
            ) as events:
                first = next(iter(events))
                assert first.type == "response.created"
                answered = pool.submit(answer)
                rest = list(events)
                answered.result()
            assert (
                "".join(event.delta for event in rest if event.type == "response.output_text.delta") == TEXT
            )
            assert rest[-1].type == "response.completed"
            assert rest[-1].response.output_text == TEXT

    again = list(client.responses.retrieve(first.response.id, stream=True, starting_after=4))
    assert [event.sequence_number for event in again] == list(range(5, 5 + len(again)))
    assert again[-1] == rest[-1]
    with client.responses.stream(response_id=first.response.id, starting_after=7) as helper:
        assert next(iter(helper)).sequence_number == 8
        assert helper.get_final_response().output_text == TEXT
    with client.responses.stream(model="default", input="a", background=True) as helper:
        answer()
        assert helper.get_final_response().output_text == TEXT
    with client.responses.create(
        model="default", input="a", stream=True, stream_options={"include_obfuscation": False}
    ) as events:
        answer()
        assert list(events)[-1].type == "response.completed"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_official_client_passes_a_cancelled_end_through(client: OpenAI) -> None:
    with client.responses.stream(model="default", input="a", background=True) as helper:
        created = next(iter(helper))
        assert created.type == "response.created"
        client.responses.cancel(created.response.id)
        assert [event.type for event in helper] == ["response.queued", "response.cancelled"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_official_asynchronous_client_streams(
    served: Served, api_key: str, speak: Callable[..., Speaker]
) -> None:
    import asyncio

    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=api_key, max_retries=0) as client:
            events = await client.responses.create(model="default", input="a", stream=True)
            seen = [await anext(events)]
            speaker = await asyncio.to_thread(speak)
            await asyncio.to_thread(speaker.say, *PIECES)
            await asyncio.to_thread(speaker.finish, "")
            seen += [event async for event in events]
            response_id = seen[0].response.id  # type: ignore[union-attr]
            rest = await client.responses.retrieve(response_id, stream=True, starting_after=3)
            assert [event async for event in rest] == seen[4:]
            async with client.responses.stream(response_id=response_id) as helper:
                assert (await helper.get_final_response()).output_text == TEXT

    asyncio.run(run())

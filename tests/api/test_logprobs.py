"""Log-probabilities of an answer: in the response, in its events, for each reader, after a worker's death too."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis import Redis

from storage import scores, stream
from storage.database import Database
from tests.api.reading import Reader, whole
from tests.api.speaker import Speaker, entry
from tests.api.test_streaming import PIECES, TEXT, strictly

INCLUDE = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
SHOWN = scores.shown([entry(place, piece) for place, piece in enumerate(PIECES)])

Speak = Callable[..., Speaker]


@pytest.fixture
def speak(database: Database, redis: Redis) -> Speak:
    return lambda **options: Speaker(database, redis, scored=True, **options)


def ask(http: httpx.Client, **body: Any) -> str:
    made = http.post("/v1/responses", json={"input": "a", "background": True, **INCLUDE, **body})
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def told(events: list[str]) -> list[Any]:
    """The tokens of all deltas."""
    shown = [json.loads(event) for event in events]
    return [one for each in shown if each["type"].endswith("text.delta") for one in each["logprobs"]]


def without_bytes(shown: Any) -> Any:
    if isinstance(shown, list):
        return [without_bytes(each) for each in shown]
    if isinstance(shown, dict):
        return {key: without_bytes(value) for key, value in shown.items() if key != "bytes"}
    return shown


def test_each_token_is_told_with_the_text_that_it_released(http: httpx.Client, speak: Speak) -> None:
    response_id = ask(http)
    reader = Reader(http, response_id)
    speaker = speak()
    assert speaker.response.request["logprobs"] == 2
    speaker.say(*PIECES)
    speaker.finish()
    events = reader.to_end()
    for event in events:
        strictly(json.loads(event))
    assert told(events) == without_bytes(SHOWN)
    done, part, item, last = [json.loads(event) for event in events[-4:]]
    assert done["logprobs"] == without_bytes(SHOWN)
    assert part["part"] == item["item"]["content"][0] == last["response"]["output"][0]["content"][0]
    assert part["part"]["logprobs"] == SHOWN
    shown = http.get(
        f"/v1/responses/{response_id}", params={"include[]": "message.output_text.logprobs"}
    ).json()
    assert shown == last["response"]
    assert shown["top_logprobs"] == 2


@pytest.mark.parametrize("way", ["checkpoint", "live", "flushed"])
def test_every_reader_at_every_point_sees_the_same_after_a_death(
    http: httpx.Client, speak: Speak, redis: Redis, way: str
) -> None:
    response_id = ask(http)
    early = Reader(http, response_id)
    first = speak()
    first.say(*PIECES[:6])
    first.vanish(checkpoint=way != "live")
    if way == "flushed":
        stream.forget(redis, [response_id])
    second = speak()
    assert second.pieces == PIECES[:6]
    second.say(*PIECES[6:9])
    late = Reader(http, response_id)
    second.say(*PIECES[9:])
    second.finish()
    events = early.to_end()
    assert late.to_end() == events
    assert told(events) == without_bytes(SHOWN)
    for number in range(-1, len(events), 4):
        assert whole(http, response_id, number if number >= 0 else None) == events[number + 1 :]


def test_the_end_tells_the_tokens_that_it_released(http: httpx.Client, speak: Speak) -> None:
    response_id = ask(http)
    speaker = speak()
    speaker.say("a", "", "")
    speaker.finish("bc")
    events = whole(http, response_id)
    assert [len(json.loads(event)["logprobs"]) for event in events if ".delta" in event] == [1, 2]
    (message,) = http.get(f"/v1/responses/{response_id}").json()["output"]
    assert len(message["content"][0]["logprobs"]) == 3


def test_what_a_stop_string_was_cut_out_of_is_told_nowhere(http: httpx.Client, speak: Speak) -> None:
    response_id = ask(http)
    speaker = speak()
    speaker.say("a", "", "")
    speaker.finish()
    events = whole(http, response_id)
    assert len(told(events)) == 1
    last = json.loads(events[-1])["response"]
    assert len(last["output"][0]["content"][0]["logprobs"]) == 1
    check_text = json.loads(events[-4])
    assert len(check_text["logprobs"]) == 1


def test_top_logprobs_alone_include_nothing(http: httpx.Client, speak: Speak) -> None:
    ask(http, include=None)
    assert speak().response.request["logprobs"] is None


def test_nothing_is_sent_where_nothing_was_asked_for(
    http: httpx.Client, database: Database, redis: Redis
) -> None:
    response_id = ask(http, include=[], top_logprobs=None)
    speaker = Speaker(database, redis)
    speaker.say(*PIECES)
    speaker.finish()
    events = whole(http, response_id)
    assert told(events) == []
    entries = redis.xrange(stream.key(response_id))
    assert isinstance(entries, list)
    assert not any("logprobs" in fields for _, fields in entries)
    assert http.get(f"/v1/responses/{response_id}").json()["output"][0]["content"][0]["text"] == TEXT


def test_a_query_includes_log_probabilities_and_nothing_else(http: httpx.Client, speak: Speak) -> None:
    response_id = ask(http)
    refused = http.get(f"/v1/responses/{response_id}", params={"include[]": "reasoning.encrypted_content"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "include")

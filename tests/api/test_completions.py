"""Completions: raw prompts, echoed and scored, in one piece and in chunks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai.types import Completion
from redis import Redis

from storage import scores
from storage.database import Database
from storage.models import Json
from tests.api.fake_worker import until
from tests.api.speaker import Speaker, entry
from tests.api.strict import check
from tests.api.test_chat_completions import NO_DETAILS, jobs

Speak = Callable[..., Speaker]

PIECES = [" upon", "", " 很", " time"]
# The second token is half a character, which its name tells; the third has the other half.
NAMES = [" upon", "bytes:\\xe2", " 很", " time"]
PROMPT = [scores.entry([(b"Once", None)]), scores.entry([(b" more", -3.0), (b" again", -0.5)])]
STOP = [scores.entry([(b"<|im_end|>", -0.25), (b"<|im_end|>", -0.25)])]
RAW: Json = {"prompt": "Once more", "prompt_logprobs": PROMPT, "stop_logprobs": STOP}


@pytest.fixture
def speak(database: Database, redis: Redis) -> Speak:
    return lambda **options: Speaker(database, redis, **options)


def chunks(http: httpx.Client, body: Json, speak: Callable[[], None]) -> list[Any]:
    with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        speak()
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_echoed_prompt_is_scored_with_its_answer(
    http: httpx.Client, database: Database, speak: Speak
) -> None:
    body: Json = {"prompt": "Once more", "echo": True, "logprobs": 2}

    def answer() -> None:
        speaker = speak(scored=True)
        assert (speaker.response.request["prompt"], speaker.response.request["logprobs"]) == ("Once more", 2)
        speaker.say(*PIECES)
        speaker.finish(raw=RAW)

    told = chunks(http, body, answer)
    frame = {key: told[0][key] for key in ("id", "object", "created", "model")}
    assert frame["object"] == "text_completion"
    assert all({key: chunk[key] for key in frame} == frame for chunk in told)
    texts = [chunk["choices"][0]["text"] for chunk in told]
    assert texts == ["Once more", " upon", " 很", " time", ""]
    assert told[-1]["choices"][0]["finish_reason"] == "stop"
    names = ["Once", " more", *NAMES, "<|im_end|>"]
    joined: dict[str, list[Any]] = {}
    for chunk in told:
        for key, values in chunk["choices"][0]["logprobs"].items():
            joined.setdefault(key, []).extend(values)
    assert joined["tokens"] == names
    assert joined["token_logprobs"] == [None, -3.0, 0.0, -0.125, -0.25, -0.375, -0.25]
    assert joined["top_logprobs"][:2] == [None, {" more": -3.0, " again": -0.5}]
    assert joined["text_offset"] == [0, 4, 9, 14, 14, 17, 22]
    whole = "".join(texts)
    for offset, name in zip(joined["text_offset"], names, strict=True):
        assert (
            name.startswith(("bytes:", "<|"))
            or whole.replace("\ufffd", "")[offset:].startswith(name)
            or (offset > 14)
        )


def test_the_object_is_exactly_the_sdks(http: httpx.Client, database: Database, speak: Speak) -> None:
    """What was streamed under a key comes again in one piece: here it is read from another job's items."""
    from threading import Thread

    found: list[httpx.Response] = []
    body: Json = {"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "logprobs": 1, "seed": 5}
    thread = Thread(target=lambda: found.append(http.post("/v1/completions", json=body)))
    thread.start()
    until(lambda: len(jobs(database)) == 4)
    raw = {"prompt": "?", "prompt_logprobs": None, "stop_logprobs": None}
    speakers = [speak(scored=True) for _ in range(4)]
    for speaker in speakers:
        speaker.say(speaker.response.request["prompt"], str(speaker.response.choice))
        speaker.finish(raw=raw, incomplete=True)
    thread.join(20)
    shown = found[0].json()
    check(Completion, shown, left_out=NO_DETAILS)
    assert [each["text"] for each in shown["choices"]] == ["a0", "a1", "b2", "b3"]
    assert [each["index"] for each in shown["choices"]] == [0, 1, 2, 3]
    assert {each["finish_reason"] for each in shown["choices"]} == {"length"}
    assert [speaker.response.seed for speaker in speakers] == [5, 6, 5, 6]
    assert [each["logprobs"]["tokens"] for each in shown["choices"][:2]] == [["a", "0"], ["a", "1"]]
    # Each prompt is counted once: two of 7 tokens, and four answers of 2.
    assert (shown["usage"]["prompt_tokens"], shown["usage"]["completion_tokens"]) == (14, 8)
    request = speakers[0].response.request
    assert [request[name] for name in ("temperature", "top_p", "top_k", "repetition_penalty")] == [1, 1, 0, 1]
    assert (request["max_output_tokens"], request["echo"]) == (3, False)


def test_a_prompt_of_text_is_echoed_at_once_and_one_of_tokens_at_the_end(
    http: httpx.Client, speak: Speak
) -> None:
    def answer() -> None:
        first, second = speak(), speak()
        for speaker, prompt in ((first, "Once"), (second, "[told]")):
            speaker.say(" upon", " a")
            speaker.finish(raw={"prompt": prompt, "prompt_logprobs": None, "stop_logprobs": None})

    told = chunks(http, {"prompt": "Once", "n": 2, "echo": True}, answer)
    for index in (0, 1):
        mine = [chunk["choices"][0]["text"] for chunk in told if chunk["choices"][0]["index"] == index]
        assert mine == ["Once", " upon", " a", ""]
    told = chunks(
        http, {"prompt": [[1, 2], [3]], "echo": True, "stream_options": {"include_usage": True}}, answer
    )
    by_choice = [
        [chunk["choices"][0]["text"] for chunk in told[:-1] if chunk["choices"][0]["index"] == index]
        for index in (0, 1)
    ]
    assert by_choice == [["Once", " upon", " a", ""], ["[told]", " upon", " a", ""]]
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["prompt_tokens"] == 14


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("a", ["a"]), (["a", ""], ["a", ""]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_all_forms_of_a_prompt(
    http: httpx.Client, database: Database, speak: Speak, prompt: Any, read: list[Any]
) -> None:
    def answer() -> None:
        for _ in read:
            speak().finish(raw={"prompt": "", "prompt_logprobs": None, "stop_logprobs": None})

    told = chunks(http, {"prompt": prompt}, answer)
    assert len(told) == len(read)
    assert [job.request["prompt"] for job in jobs(database)] == read
    assert {job.request["max_output_tokens"] for job in jobs(database)} == {16}


BAD: list[tuple[Json, str, str]] = [
    ({"prompt": None}, "prompt", "invalid_type"),
    ({"prompt": 7}, "prompt", "invalid_type"),
    ({"prompt": [True]}, "prompt[0]", "invalid_type"),
    ({"prompt": ["a", 7]}, "prompt[1]", "invalid_type"),
    ({"prompt": [[1], ["a"]]}, "prompt[1]", "invalid_type"),
    ({"prompt": [-1]}, "prompt[0]", "invalid_type"),
    ({"prompt": []}, "prompt", "array_below_min_length"),
    ({"prompt": [[1], []]}, "prompt[1]", "array_below_min_length"),
    ({"prompt": [1] * 8193}, "prompt", "context_length_exceeded"),
    ({"prompt": ["a"] * 65, "n": 2}, "prompt", "array_above_max_length"),
    ({"logprobs": 6}, "logprobs", "integer_above_max_value"),
    ({"logprobs": True}, "logprobs", "invalid_type"),
    ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": 8193}, "max_tokens", "integer_above_max_value"),
    ({"echo": "yes"}, "echo", "invalid_type"),
    ({"suffix": "end"}, "suffix", "unsupported_parameter"),
    ({"best_of": 2}, "best_of", "unsupported_parameter"),
    ({"messages": []}, "messages", "unknown_parameter"),
    ({"metadata": {}}, "metadata", "unknown_parameter"),
]


def test_bad_requests_name_their_parameter_and_store_nothing(
    http: httpx.Client, rows: Callable[[], dict[str, int]]
) -> None:
    before = rows()
    wrong = []
    for change, param, code in BAD:
        answer = http.post("/v1/completions", json={"prompt": "a", **change})
        error = answer.json().get("error") or {}
        if (answer.status_code, error.get("param"), error.get("code")) != (400, param, code):
            wrong.append((str(change)[:100], answer.status_code, error))
    assert not wrong
    assert rows() == before


def test_the_entries_of_a_speaker_are_what_the_test_reads() -> None:
    assert [scores.text(entry(place, piece)[0][0]) for place, piece in enumerate(PIECES)] == [
        " upon",
        "\\xe2",
        " 很",
        " time",
    ]

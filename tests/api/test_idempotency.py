"""`Idempotency-Key`: one object for one key, however often and however fast the request is sent."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from openai import OpenAI

from tests.api.fake_worker import FakeWorker

BODY = {"input": "a", "background": True}


def send(http: httpx.Client, path: str, body: object, key: str) -> httpx.Response:
    return http.post(path, json=body, headers={"idempotency-key": key})


@pytest.mark.parametrize(("path", "body"), [("/v1/responses", BODY), ("/v1/conversations", {"metadata": {}})])
def test_the_same_key_and_body_give_the_same_object(
    http: httpx.Client, stranger: httpx.Client, path: str, body: dict[str, object]
) -> None:
    first = send(http, path, body, "k1")
    assert first.status_code == 200
    again = send(http, path, dict(reversed(body.items())), "k1")
    assert again.json() == first.json()
    assert send(http, path, body, "k2").json()["id"] != first.json()["id"]
    assert send(stranger, path, body, "k1").json()["id"] != first.json()["id"]


def test_another_body_is_a_conflict_and_is_not_sent_again(
    client: OpenAI, http: httpx.Client, rows: Callable[[], dict[str, int]]
) -> None:
    send(http, "/v1/responses", BODY, "k1")
    before = rows()
    patient = client.with_options(max_retries=3)
    with pytest.raises(openai.ConflictError) as refused:
        patient.responses.create(
            model="default", input="b", background=True, extra_headers={"Idempotency-Key": "k1"}
        )
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert send(http, "/v1/conversations", {}, "k1").status_code == 409
    assert rows() == before


def test_a_race_of_equal_requests_makes_one_object(
    http: httpx.Client, rows: Callable[[], dict[str, int]]
) -> None:
    for path, body, table in (
        ("/v1/responses", BODY, "responses"),
        ("/v1/conversations", {"items": [{"role": "user", "content": "a"}]}, "conversations"),
    ):
        for number in range(5):
            before = rows()[table]
            with ThreadPoolExecutor(8) as pool:
                calls = [pool.submit(send, http, path, body, f"{table}{number}") for _ in range(8)]
                answers = [call.result() for call in calls]
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.json()["id"] for answer in answers}) == 1
            assert rows()[table] == before + 1


def test_the_object_comes_back_as_it_is_by_then(http: httpx.Client, worker: FakeWorker) -> None:
    send(http, "/v1/responses", BODY, "k1")
    worker.answer("Done.")
    again = send(http, "/v1/responses", BODY, "k1").json()
    assert again["status"] == "completed"
    assert again["output"][0]["content"][0]["text"] == "Done."


def test_a_refused_request_does_not_use_up_its_key(http: httpx.Client) -> None:
    assert send(http, "/v1/responses", {**BODY, "conversation": "conv_0"}, "k1").status_code == 404
    assert send(http, "/v1/responses", BODY, "k1").status_code == 200


def test_keys_have_a_form(http: httpx.Client) -> None:
    for odd in ("", "x" * 256, "a b", "a\tb"):
        answer = send(http, "/v1/responses", BODY, odd)
        assert answer.status_code == 400, odd
        assert answer.json()["error"]["param"] == "idempotency-key"

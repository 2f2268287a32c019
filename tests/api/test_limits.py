"""Limits of a key: counted for all processes, told in headers, and no outage when Redis is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest
from openai import OpenAI
from redis import Redis

from api import limits
from api.settings import ApiSettings
from storage import keys
from storage.database import Database
from tests.api.fake_worker import FakeWorker
from tests.api.serving import serving
from tests.api.test_outages import NOBODY

BODY = {"input": "x" * 40, "background": True, "max_output_tokens": 90}  # 10 + 90 tokens

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def _nothing_counted(redis: Redis) -> None:
    for key in redis.keys("qwenq:limits*"):
        redis.delete(key)


@contextmanager
def limited(settings: ApiSettings, secret: str, **change: object) -> Iterator[httpx.Client]:
    """An API process with these settings, and a client of it."""
    with (
        serving(settings.model_copy(update=change)) as served,
        httpx.Client(base_url=served.url, headers={"authorization": f"Bearer {secret}"}, timeout=30) as http,
    ):
        yield http


def key(database: Database, **own: int) -> str:
    with database.begin() as session:
        return keys.create(session, "ours", "limited", **own).secret


def post(http: httpx.Client, **change: object) -> httpx.Response:
    return http.post("/v1/responses", json={**BODY, **change})


def test_without_limits_nothing_is_counted(http: httpx.Client, redis: Redis) -> None:
    answer = post(http)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    assert redis.keys("qwenq:limits*") == []


def test_requests_are_counted_down_and_then_refused(
    settings: ApiSettings, api_key: str, rows: Callable[[], dict[str, int]]
) -> None:
    with limited(settings, api_key, requests_per_minute=3) as http:
        for remaining in ("2", "1", "0"):
            answer = post(http)
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == remaining
            assert 0 < float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
            assert "x-ratelimit-limit-tokens" not in answer.headers
        before = rows()
        refused = post(http)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"], error["param"]) == (
            "rate_limit_error",
            "rate_limit_exceeded",
            None,
        )
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert rows() == before
        listed = http.get("/v1/responses")
        assert listed.status_code == 200, "looking costs nothing"
        for each in listed.json()["data"]:
            assert http.post(f"/v1/responses/{each['id']}/cancel").status_code == 200


def test_tokens_are_charged_when_a_job_is_submitted(settings: ApiSettings, api_key: str) -> None:
    with limited(settings, api_key, tokens_per_minute=350) as http:
        assert post(http).headers["x-ratelimit-remaining-tokens"] == "250"
        # Instructions count too: 10 + 5 + 90.
        assert post(http, instructions="y" * 20).headers["x-ratelimit-remaining-tokens"] == "145"
        assert post(http).headers["x-ratelimit-remaining-tokens"] == "45"
        refused = post(http)
        assert refused.status_code == 429
        assert "tokens per minute" in refused.json()["error"]["message"]
        assert refused.headers["x-ratelimit-remaining-tokens"] == "45", "a refusal costs no tokens"
        small = post(http, input="xx", max_output_tokens=44)
        assert (small.status_code, small.headers["x-ratelimit-remaining-tokens"]) == (200, "0")


def test_an_answer_of_unknown_length_is_charged_the_default(settings: ApiSettings, api_key: str) -> None:
    with limited(settings, api_key, tokens_per_minute=1000) as http:
        answer = post(http, max_output_tokens=None)
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(990 - limits.DEFAULT_OUTPUT_TOKENS)


def test_what_can_never_pass_is_not_sent_again(settings: ApiSettings, api_key: str) -> None:
    with limited(settings, api_key, tokens_per_minute=99) as http:
        refused = post(http)
        assert refused.status_code == 429
        assert "too large" in refused.json()["error"]["message"]
        assert refused.headers["x-should-retry"] == "false"
        assert "retry-after" not in refused.headers


def test_a_refused_body_costs_nothing(settings: ApiSettings, api_key: str) -> None:
    with limited(settings, api_key, requests_per_minute=2) as http:
        for _ in range(3):
            assert post(http, temperature=9).status_code == 400
        assert post(http).headers["x-ratelimit-remaining-requests"] == "1"
        missing = post(http, conversation="conv_0")
        assert (missing.status_code, missing.headers["x-ratelimit-remaining-requests"]) == (404, "0")


def test_a_keys_own_limits_win_and_keys_do_not_share(settings: ApiSettings, database: Database) -> None:
    strict, free, usual = (
        key(database, requests_per_minute=1, tokens_per_minute=0),
        key(database, requests_per_minute=0),
        key(database),
    )
    with limited(settings, strict, requests_per_minute=2, tokens_per_minute=1000) as http:
        assert "x-ratelimit-limit-tokens" not in post(http).headers
        assert post(http).status_code == 429
        http.headers["authorization"] = f"Bearer {free}"
        for _ in range(4):
            answer = post(http)
            assert answer.status_code == 200
            assert "x-ratelimit-limit-requests" not in answer.headers
        http.headers["authorization"] = f"Bearer {usual}"
        assert [post(http).status_code for _ in range(3)] == [200, 200, 429]


def test_processes_share_their_counters(settings: ApiSettings, api_key: str) -> None:
    with (
        limited(settings, api_key, requests_per_minute=2) as one,
        limited(settings, api_key, requests_per_minute=2) as other,
    ):
        assert [post(one).status_code, post(other).status_code, post(one).status_code] == [200, 200, 429]


def test_without_redis_each_process_counts_for_itself(settings: ApiSettings, api_key: str) -> None:
    with limited(settings, api_key, requests_per_minute=2, redis_url=NOBODY) as http:
        answers = [post(http) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[1].headers["x-ratelimit-remaining-requests"] == "0"
        assert max(answer.elapsed.total_seconds() for answer in answers) < 2


def test_a_waiting_and_a_streamed_call_show_their_headers_too(
    settings: ApiSettings, api_key: str, worker: FakeWorker
) -> None:
    with limited(settings, api_key, requests_per_minute=9) as http, worker.at_work():
        waited = post(http, background=False)
        assert waited.headers["x-ratelimit-remaining-requests"] == "8"
        with http.stream("POST", "/v1/responses", json={**BODY, "stream": True}) as streamed:
            assert streamed.headers["x-ratelimit-remaining-requests"] == "7"
            streamed.read()


def test_the_official_client_raises_its_own_error(settings: ApiSettings, api_key: str) -> None:
    with (
        limited(settings, api_key, requests_per_minute=1) as http,
        OpenAI(base_url=f"{http.base_url}/v1", api_key=api_key, max_retries=0) as client,
    ):
        raw = client.responses.with_raw_response.create(model="default", input="a", background=True)
        assert raw.headers["x-ratelimit-limit-requests"] == "1"
        with pytest.raises(openai.RateLimitError) as refused:
            client.responses.create(model="default", input="a", background=True)
        assert refused.value.code == "rate_limit_exceeded"

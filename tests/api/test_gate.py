"""What every answer has: an id, fixed headers, OpenAI's error shape, one log line without secrets."""

from __future__ import annotations

import re

import httpx
import pytest
import structlog
from openai import OpenAI
from structlog.testing import capture_logs

from api import responses

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_every_answer_has_a_request_id(http: httpx.Client, client: OpenAI) -> None:
    made = http.get("/livez").headers["x-request-id"]
    assert re.fullmatch(r"req_[0-9a-f]{32}", made)
    assert made != http.get("/livez").headers["x-request-id"]
    assert (
        http.get("/v1/models", headers={"x-request-id": "trace-1.a_B"}).headers["x-request-id"]
        == "trace-1.a_B"
    )
    for odd in ("", "a b", "x" * 129, "a\tb", "<script>"):
        assert (
            http.get("/v1/models", headers={"x-request-id": odd}).headers["x-request-id"].startswith("req_")
        )
    assert client.models.list()._request_id is not None
    assert http.get("/nowhere").headers["x-request-id"]


def test_every_answer_has_its_fixed_headers(http: httpx.Client) -> None:
    for path in ("/livez", "/v1/models", "/nowhere", "/v1/responses/resp_0"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    for path in ("/", "/v1", "/v1/nothing", "/v1/responses/", "/docs", "/v1//responses"):
        answer = http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
    wrong = http.put("/v1/responses")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert set(wrong.json()["error"]) == {"message", "type", "param", "code"}
    assert set(wrong.headers["allow"].split(", ")) == {"GET", "POST"}


def test_ids_that_no_database_takes_are_not_found(http: httpx.Client) -> None:
    for odd in ("%00", "resp_%00", "%ED%A0%80", "%FF", "😀", "a" * 5000, "..%2f..", "'--"):
        for path in (f"/v1/responses/{odd}", f"/v1/conversations/{odd}/items/{odd}"):
            assert http.get(path).status_code == 404, path
        assert http.delete(f"/v1/webhook_endpoints/{odd}").status_code == 404


def test_one_log_line_a_request_with_its_ids_and_without_secrets(http: httpx.Client, api_key: str) -> None:
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        body = {"input": "my secret diary", "background": True, "user": "u"}
        created = http.post("/v1/responses?x=hidden", json=body, headers={"x-request-id": "r1"}).json()
        http.get(f"/v1/responses/{created['id']}", headers={"x-request-id": "r2"})
    posted, got = [line for line in lines if line["event"] == "request"]
    assert posted["method"] == "POST"
    assert posted["path"] == "/v1/responses"
    assert posted["status"] == 200
    assert posted["ms"] > 0
    assert (posted["request_id"], got["request_id"]) == ("r1", "r2")
    assert posted["response_id"] == got["response_id"] == created["id"]
    assert not re.search(f"diary|hidden|{api_key}", str(lines))


def test_a_defect_is_a_500_that_says_where_to_look(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(responses, "_load", broken)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        answer = http.get("/v1/responses/resp_1")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "internal_error", None)
    request_id = answer.headers["x-request-id"]
    assert request_id in error["message"]
    assert "ZeroDivisionError" not in answer.text
    (defect,) = [line for line in lines if line["event"] == "defect"]
    assert (defect["request_id"], defect["response_id"]) == (request_id, "resp_1")
    assert defect["log_level"] == "error"


def test_a_traceback_in_the_log_holds_no_callers_words(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.ids.new", lambda _prefix: "always the same")
    body = {"input": "my secret diary", "background": True}
    with capture_logs(processors=[structlog.processors.format_exc_info]) as lines:
        answers = [http.post("/v1/responses", json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 500]
    (defect,) = [line for line in lines if line["event"] == "defect"]
    assert "IntegrityError" in defect["exception"]
    assert "diary" not in str(lines)

"""Batches with the official client: from an input file to the files that it becomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
import structlog
from openai import OpenAI
from openai.types import Batch
from openai.types.chat import ChatCompletion
from openai.types.responses import Response as SdkResponse
from openai.types.webhooks import BatchCompletedWebhookEvent
from sqlalchemy import func, select, update

from api import batch_driver, batch_input, clerk
from api.settings import ApiSettings
from storage import clock, retention
from storage.batch_models import Batch as Row
from storage.batch_models import BatchLine
from storage.database import Database
from storage.models import File, Response, WebhookEvent
from storage.retention import Keep
from tests.api.fake_worker import FakeWorker, until
from tests.api.serving import Served, serving
from tests.api.strict import check

WINDOW = 4


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_driver, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(clerk, "TICK_SECONDS", 0.05)


@pytest.fixture
def settings(settings: ApiSettings) -> ApiSettings:
    return settings.model_copy(update={"batch_window": WINDOW})


def line(custom_id: Any, **body: Any) -> dict[str, Any]:
    body = {"model": "default", "input": "Hello", **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/responses", "body": body}


def upload(client: OpenAI, *lines: Any) -> str:
    text = b"".join(
        (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines
    )
    return client.files.create(file=("in.jsonl", text), purpose="batch").id


def submit(client: OpenAI, *lines: Any, **fields: Any) -> Batch:
    return client.batches.create(
        input_file_id=upload(client, *lines), endpoint="/v1/responses", completion_window="24h", **fields
    )


def reached(client: OpenAI, batch_id: str, *statuses: str) -> Batch:
    until(lambda: client.batches.retrieve(batch_id).status in statuses, 60)
    return client.batches.retrieve(batch_id)


def read(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def test_a_batch_becomes_a_file_of_answers(
    client: OpenAI, http: httpx.Client, worker: FakeWorker, database: Database
) -> None:
    hook = client.webhooks.create(
        name="all", url="http://127.0.0.1:9/", event_types=["batch.completed", "response.completed"]
    )
    made = submit(client, *(line(f"n{n}", input=f"Say {n}") for n in range(10)), metadata={"of": "mine"})
    assert made.status == "validating"
    with worker.at_work("Hi."):
        done = reached(client, made.id, "completed")
    shown = http.get(f"/v1/batches/{made.id}").json()
    check(Batch, shown)
    assert shown["request_counts"] == {"total": 10, "completed": 10, "failed": 0}
    assert shown["usage"]["total_tokens"] == 100
    assert shown["metadata"] == {"of": "mine"}
    assert (shown["errors"], shown["error_file_id"], shown["model"]) == (None, None, "Qwen-1_8B-Chat-Int4")
    assert shown["created_at"] <= shown["in_progress_at"] <= shown["finalizing_at"] <= shown["completed_at"]
    assert shown["expires_at"] == shown["created_at"] + 24 * 3600

    lines = read(client, done.output_file_id)
    assert [each["custom_id"] for each in lines] == [f"n{n}" for n in range(10)]
    assert len({each["id"] for each in lines}) == 10
    for each in lines:
        assert (each["error"], each["response"]["status_code"]) == (None, 200)
        assert each["response"]["request_id"].startswith("req_")
        answer = SdkResponse.model_validate(each["response"]["body"])
        assert (answer.output_text, answer.service_tier) == ("Hi.", "flex")
        assert client.responses.retrieve(answer.id).output_text == "Hi."
    output = client.files.retrieve(str(done.output_file_id))
    assert (output.purpose, output.filename, output.expires_at) == (
        "batch_output",
        f"{made.id}_output.jsonl",
        None,
    )
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Response)) == 10
        assert session.scalar(select(func.count()).select_from(BatchLine)) == 0
        (event,) = session.scalars(select(WebhookEvent)).all()
    assert hook.id
    body = json.loads(event.body)
    extensions = ("status", "metadata", "output_file_id", "error_file_id", "request_counts")
    check(BatchCompletedWebhookEvent, body, extensions=[f"data.{name}" for name in extensions])
    assert (event.type, body["data"]["id"]) == ("batch.completed", made.id)
    assert body["data"]["output_file_id"] == done.output_file_id


@pytest.mark.parametrize("status", ["failed", "expired", "cancelled"])
def test_each_end_is_told(client: OpenAI, database: Database, status: str) -> None:
    client.webhooks.create(name="all", url="http://127.0.0.1:9/", event_types=[f"batch.{status}"])  # type: ignore[list-item]
    made = submit(client, b"{" if status == "failed" else line("a"))
    if status != "failed":
        until(lambda: worker_sees(database) == 1)
    if status == "cancelled":
        client.batches.cancel(made.id)
    if status == "expired":
        with database.begin() as session:
            session.execute(update(Row).values(expires_at=clock.now()))
    reached(client, made.id, status)
    with database.read() as session:
        (event,) = session.scalars(select(WebhookEvent)).all()
    body = json.loads(event.body)
    assert (event.type, event.subject, body["data"]["id"]) == (f"batch.{status}", made.id, made.id)
    assert body["data"]["request_counts"]["completed"] == 0


def test_no_more_lines_are_jobs_than_the_window_has_room_for(
    client: OpenAI, worker: FakeWorker, database: Database
) -> None:
    first = submit(client, *(line(f"a{n}") for n in range(9)))
    second = submit(client, *(line(f"b{n}") for n in range(3)))

    def jobs() -> int:
        with database.read() as session:
            return session.scalar(select(func.count()).select_from(Response)) or 0

    until(lambda: jobs() == WINDOW)
    for answered in range(1, 13):
        worker.answer()
        until(lambda: jobs() == min(12, answered + WINDOW))  # noqa: B023
    assert reached(client, first.id, "completed").request_counts is not None
    reached(client, second.id, "completed")
    assert jobs() == 12


def test_every_bad_line_is_told_of_and_none_runs(
    client: OpenAI, http: httpx.Client, rows: Callable[[], dict[str, int]]
) -> None:
    before = rows()
    lines: list[tuple[Any, str | None, str | None]] = [
        (b"{", "invalid_json", None),
        (b"\xff", "invalid_json", None),
        (b"7", "invalid_type", None),
        ({"custom_id": "x"}, "missing_required_parameter", "method"),
        (line(7), "invalid_type", "custom_id"),
        (line(""), "string_below_min_length", "custom_id"),
        (line("a"), None, None),
        (b"", None, None),
        (line("a"), "duplicate_custom_id", "custom_id"),
        ({**line("b"), "method": "GET"}, "invalid_value", "method"),
        ({**line("c"), "url": "/v1/chat/completions"}, "invalid_url", "url"),
        ({**line("d"), "more": 1}, "unknown_parameter", "more"),
        (line("e", model="gpt"), "model_not_found", "model"),
        (line("f", input=""), "string_below_min_length", "input"),
        (line("g", max_token=7), "unknown_parameter", "max_token"),
        (line("h", temperature=3), "decimal_above_max_value", "temperature"),
        (line("i", stream=True), "unsupported_parameter", "stream"),
        (line("j", background=True), "unsupported_parameter", "background"),
        (line("k", service_tier="priority"), "unsupported_parameter", "service_tier"),
        (line("l", webhook={"url": "http://127.0.0.1/"}), "unsupported_parameter", "webhook"),
        (line("m", input="x" * 1_100_000), "request_too_large", None),
        (line("n", stream=False, background=False, service_tier="auto"), None, None),
    ]
    made = submit(client, *(given for given, _, _ in lines))
    failed = reached(client, made.id, "failed")
    check(Batch, http.get(f"/v1/batches/{made.id}").json())
    assert failed.errors is not None
    assert failed.errors.data is not None
    told = [(error.line, error.code, error.param) for error in failed.errors.data]
    assert told == [
        (number, code, param) for number, (_, code, param) in enumerate(lines, 1) if code is not None
    ]
    # The words are those that the endpoint itself would say.
    over_http = http.post("/v1/responses", json=line("h", temperature=3)["body"]).json()["error"]
    (same,) = [error for error in failed.errors.data if error.param == "temperature"]
    assert (same.message, same.code) == (over_http["message"], over_http["code"])
    assert failed.request_counts is not None
    assert failed.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
    assert (failed.output_file_id, failed.error_file_id) == (None, None)
    assert rows() == {**before, "files": 1, "batches": 1}


def test_ids_are_compared_across_stretches(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "READ_LINES", 3)
    names = ["a", "b", "c", "d", "b", "e", "a", "a", "f"]
    failed = reached(client, submit(client, *map(line, names)).id, "failed")
    assert failed.errors is not None
    assert [(error.line, error.code) for error in failed.errors.data or []] == [
        (5, "duplicate_custom_id"),
        (7, "duplicate_custom_id"),
        (8, "duplicate_custom_id"),
    ]


def test_an_empty_file_and_one_with_too_many_lines_fail(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = reached(client, submit(client, b"", b" ").id, "failed")
    assert empty.errors is not None
    assert [(error.line, error.code) for error in empty.errors.data or []] == [(None, "empty_file")]
    monkeypatch.setattr(batch_input, "MAX_LINES", 5)
    long = reached(client, submit(client, *(line(f"{n}") for n in range(8))).id, "failed")
    assert long.errors is not None
    assert [(error.line, error.code) for error in long.errors.data or []] == [(6, "too_many_requests")]
    monkeypatch.setattr(batch_input, "MAX_ERRORS", 3)
    bad = reached(client, submit(client, *[b"{"] * 9).id, "failed")
    assert bad.errors is not None
    assert [error.line for error in bad.errors.data or []] == [1, 2, 3]


def test_answers_and_errors_are_apart(
    client: OpenAI, worker: FakeWorker, http: httpx.Client, database: Database
) -> None:
    conversation = client.conversations.create().id
    made = submit(
        client,
        line("good"),
        line("gone", conversation="conv_x"),
        line("first", conversation=conversation, input="1"),
        line("second", conversation=conversation, input="2"),
        line("lost", input=[{"role": "user", "content": "a"}, {"type": "item_reference", "id": "msg_x"}]),
    )
    until(lambda: worker_sees(database) == 3)
    worker.answer()
    worker.answer("one", incomplete=True)
    worker.fail()
    done = reached(client, made.id, "completed")
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 5, "completed": 2, "failed": 3}
    assert [each["custom_id"] for each in read(client, done.output_file_id)] == ["good", "first"]
    gone, second, lost = read(client, done.error_file_id)
    assert (lost["custom_id"], lost["response"]["status_code"]) == ("lost", 404)
    assert lost["response"]["body"]["error"]["param"] == "input"
    with database.read() as session:
        assert (
            session.scalar(select(func.count()).select_from(Response)) == 3
        )  # nothing is left of the others
    over_http = http.post("/v1/responses", json={"input": "a", "conversation": "conv_x"})
    assert (gone["custom_id"], gone["error"]) == ("gone", None)
    assert gone["response"]["status_code"] == over_http.status_code == 404
    assert gone["response"]["body"] == over_http.json()
    assert (second["custom_id"], second["response"]["status_code"]) == ("second", 200)
    assert second["response"]["body"]["status"] == "failed"
    assert second["error"] == {"code": "server_error", "message": "It was lost."}


def test_a_cancelled_batch_keeps_what_is_answered(
    client: OpenAI, http: httpx.Client, worker: FakeWorker, database: Database
) -> None:
    made = submit(client, *(line(f"n{n}") for n in range(6)))
    until(lambda: worker_sees(database) == WINDOW)
    worker.answer()
    running = worker.claim()
    assert running is not None
    cancelled = client.batches.cancel(made.id)
    assert (cancelled.status, cancelled.cancelled_at) == ("cancelling", None)
    check(Batch, http.get(f"/v1/batches/{made.id}").json())
    assert client.batches.cancel(made.id).status in ("cancelling", "cancelled")

    def asked() -> bool:
        with database.read() as session:
            return session.get_one(Response, running.id).cancel_requested_at is not None

    until(asked)
    worker.finish(running)  # it came too late to be stopped
    done = reached(client, made.id, "cancelled")
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 6, "completed": 2, "failed": 4}
    assert [each["custom_id"] for each in read(client, done.output_file_id)] == ["n0", "n1"]
    errors = read(client, done.error_file_id)
    assert [each["custom_id"] for each in errors] == ["n2", "n3", "n4", "n5"]
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    assert {each["response"] for each in errors} == {None}
    assert client.batches.cancel(made.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(reached(client, submit(client, b"{").id, "failed").id)


def worker_sees(database: Database) -> int:
    with database.read() as session:
        query = select(func.count()).select_from(Response).where(Response.status == "queued")
        return session.scalar(query) or 0


def test_a_batch_whose_window_is_over_expires(client: OpenAI, worker: FakeWorker, database: Database) -> None:
    made = submit(client, *(line(f"n{n}") for n in range(6)))
    until(lambda: worker_sees(database) == WINDOW)
    worker.answer()
    until(lambda: client.batches.retrieve(made.id).request_counts.completed == 1)  # type: ignore[union-attr]
    with database.begin() as session:
        session.execute(update(Row).values(expires_at=clock.now()))
    done = reached(client, made.id, "expired")
    assert done.expired_at is not None
    assert [each["custom_id"] for each in read(client, done.output_file_id)] == ["n0"]
    errors = read(client, done.error_file_id)
    assert [each["error"]["code"] for each in errors] == ["batch_expired"] * 5


def test_what_an_open_batch_needs_is_kept(
    client: OpenAI, worker: FakeWorker, database: Database, http: httpx.Client
) -> None:
    made = submit(client, line("a"), line("b"))
    until(lambda: worker_sees(database) == 2)
    worker.answer()
    assert http.delete(f"/v1/files/{made.input_file_id}").status_code == 409
    with database.begin() as session:
        session.execute(update(File).values(expires_at=1))
        session.execute(update(Response).where(Response.status == "completed").values(completed_at=1))
    gone = retention.purge(database, Keep(1, None, 30))
    assert (gone["files"], gone["responses"]) == (0, 0)
    worker.answer()
    done = reached(client, made.id, "completed")
    assert len(read(client, done.output_file_id)) == 2
    gone = retention.purge(database, Keep(1, None, 30))
    assert (gone["files"], gone["responses"]) == (1, 1)


def test_a_file_store_that_is_away_is_waited_for(
    client: OpenAI, worker: FakeWorker, settings: ApiSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_driver, "RETRY_SECONDS", 0.05)
    elsewhere = settings.files_dir.with_name("elsewhere")
    with worker.at_work():
        made = submit(client, *(line(f"n{n}") for n in range(2 * WINDOW)))
        until(lambda: client.batches.retrieve(made.id).request_counts.completed)  # type: ignore[union-attr]
        settings.files_dir.rename(elsewhere)
        settings.files_dir.write_text("in the way")
        with structlog.testing.capture_logs() as logs:
            until(lambda: any("the batch waits" in entry["event"] for entry in logs))
        settings.files_dir.unlink()
        elsewhere.rename(settings.files_dir)
        done = reached(client, made.id, "completed")
    assert len(read(client, done.output_file_id)) == 2 * WINDOW


def test_a_deleted_answer_is_an_error(client: OpenAI, worker: FakeWorker, database: Database) -> None:
    made = submit(client, line("a"), line("b"))
    until(lambda: worker_sees(database) == 2)
    answered = worker.answer()
    client.responses.delete(answered.id)
    worker.answer()
    done = reached(client, made.id, "completed")
    assert [each["custom_id"] for each in read(client, done.output_file_id)] == ["b"]
    (error,) = read(client, done.error_file_id)
    assert error["error"]["code"] == "response_gone"


def test_output_files_end_when_asked(client: OpenAI, worker: FakeWorker) -> None:
    expires: Any = {"anchor": "created_at", "seconds": 7200}
    made = submit(client, line("a"), output_expires_after=expires)
    with worker.at_work():
        done = reached(client, made.id, "completed")
    output = client.files.retrieve(str(done.output_file_id))
    assert output.expires_at == output.created_at + 7200


def test_lists_are_pages_and_projects_are_apart(
    client: OpenAI, http: httpx.Client, stranger: httpx.Client
) -> None:
    made = [submit(client, b"{").id for _ in range(3)]
    assert [each.id for each in client.batches.list()] == made[::-1]
    assert [each.id for each in client.batches.list(limit=1)] == made[::-1]
    assert stranger.get("/v1/batches").json()["data"] == []
    for method, path in (("GET", ""), ("POST", "/cancel")):
        assert stranger.request(method, f"/v1/batches/{made[0]}{path}").status_code == 404
    theirs = stranger.post(
        "/v1/batches",
        json={
            "input_file_id": client.files.list().data[0].id,
            "endpoint": "/v1/responses",
            "completion_window": "24h",
        },
    )
    assert (theirs.status_code, theirs.json()["error"]["param"]) == (404, "input_file_id")


def test_what_is_refused(
    client: OpenAI, http: httpx.Client, worker: FakeWorker, rows: Callable[[], dict[str, int]]
) -> None:
    good = {
        "input_file_id": upload(client, line("a")),
        "endpoint": "/v1/responses",
        "completion_window": "24h",
    }
    with worker.at_work():
        output = reached(client, submit(client, line("a")).id, "completed").output_file_id
    before = rows()
    for change, status, param in (
        ({"input_file_id": "file_x"}, 404, "input_file_id"),
        ({"input_file_id": output}, 400, "input_file_id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"endpoint": "/v1/models"}, 400, "endpoint"),
        ({"completion_window": "48h"}, 400, "completion_window"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
            400,
            "output_expires_after.seconds",
        ),
        ({"priority": 1}, 400, "priority"),
    ):
        answer = http.post("/v1/batches", json={**good, **change})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), (change, answer.text)
    assert rows() == before
    key = {"idempotency-key": "once"}
    first = http.post("/v1/batches", json=good, headers=key).json()
    assert http.post("/v1/batches", json=good, headers=key).json()["id"] == first["id"]
    assert rows()["batches"] == before["batches"] + 1


def test_another_process_goes_on_where_one_stopped(
    settings: ApiSettings,
    api_key: str,
    worker: FakeWorker,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("storage.batch_work.LEASE_SECONDS", 0.5)
    monkeypatch.setattr(batch_input, "READ_LINES", 5)
    batch_id, lives = "", 0
    with worker.at_work():
        while lives < 4:
            lives += 1
            with serving(settings) as running, opened(running, api_key) as client:
                if not batch_id:
                    batch_id = submit(client, *(line(f"n{n}") for n in range(40))).id
                before = client.batches.retrieve(batch_id).request_counts
                until(lambda: moved(client, batch_id, before), 60)  # noqa: B023
        with serving(settings) as running, opened(running, api_key) as client:
            done = reached(client, batch_id, "completed")
            lines = read(client, done.output_file_id)
    assert [each["custom_id"] for each in lines] == [f"n{n}" for n in range(40)]
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Response)) == 40


def opened(running: Served, api_key: str) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key=api_key, max_retries=0, timeout=30)


def moved(client: OpenAI, batch_id: str, before: Any) -> bool:
    now = client.batches.retrieve(batch_id)
    return now.status == "completed" or now.request_counts != before


def chat_line(custom_id: str, **body: Any) -> dict[str, Any]:
    body = {"model": "default", "messages": [{"role": "user", "content": "Hello"}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_a_batch_of_chat_completions(client: OpenAI, worker: FakeWorker) -> None:
    def made(*lines: Any) -> str:
        return client.batches.create(
            input_file_id=upload(client, *lines), endpoint="/v1/chat/completions", completion_window="24h"
        ).id

    bad = reached(client, made(chat_line("a"), chat_line("b", n=2)), "failed")
    assert bad.errors is not None
    assert [(each.line, each.param) for each in bad.errors.data or []] == [(2, "n")]

    batch = made(chat_line("a"), chat_line("b", store=True), chat_line("c"))
    until(lambda: worker.answers("Hi."))
    until(lambda: worker.answers("Ho."))
    until(worker.fails)
    done = reached(client, batch, "completed")
    bodies = [each["response"]["body"] for each in read(client, done.output_file_id)]
    texts = [ChatCompletion.model_validate(body).choices[0].message.content for body in bodies]
    assert texts == ["Hi.", "Ho."]
    assert client.chat.completions.retrieve(bodies[1]["id"]).choices[0].message.content == "Ho."
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(bodies[0]["id"])
    (failed,) = read(client, done.error_file_id)
    assert failed["response"]["status_code"] == 500
    assert failed["response"]["body"]["error"]["code"] == "worker_lost"

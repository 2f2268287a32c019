"""Fifty turns at once on one conversation: they run in the order of their acceptance, and a deletion loses none."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
from sqlalchemy import select

from storage.database import Database
from storage.models import Item, Response
from tests.api.fake_worker import FakeWorker, until

TURNS = 50


def submit(http: httpx.Client, conversation: str, number: int) -> httpx.Response:
    body = {"input": f"turn {number}", "conversation": conversation, "background": True}
    while True:
        answer = http.post("/v1/responses", json=body)
        if answer.status_code != 503:  # SQLite has one writer, and says so
            return answer


def stored(database: Database, ids: list[str]) -> list[Response]:
    with database.read() as session:
        return list(session.scalars(select(Response).where(Response.id.in_(ids)).order_by(Response.turn)))


def test_all_stand_in_it_in_order(http: httpx.Client, worker: FakeWorker, database: Database) -> None:
    conversation = http.post("/v1/conversations", json={}).json()["id"]
    with ThreadPoolExecutor(TURNS) as pool, worker.at_work():
        answers = list(pool.map(lambda number: submit(http, conversation, number), range(TURNS)))
        assert {answer.status_code for answer in answers} == {200}
        ids = [answer.json()["id"] for answer in answers]
        until(lambda: all(row.status == "completed" for row in stored(database, ids)), 60)
    rows = stored(database, ids)
    assert [row.turn for row in rows] == list(range(TURNS))
    ends = [row.completed_at or 0.0 for row in rows]
    assert ends == sorted(ends)
    with database.read() as session:
        order = select(Item).where(Item.conversation_id == conversation).order_by(Item.position)
        items = list(session.scalars(order))
    assert [item.response_id for item in items] == [row.id for row in rows for _ in range(2)]
    assert [item.body["role"] for item in items] == ["user", "assistant"] * TURNS


def test_deleted_meanwhile_every_accepted_turn_still_ends(
    http: httpx.Client, worker: FakeWorker, database: Database
) -> None:
    conversation = http.post("/v1/conversations", json={}).json()["id"]
    half = threading.Semaphore(0)

    def turn(number: int) -> httpx.Response:
        answer = submit(http, conversation, number)
        half.release()
        return answer

    with ThreadPoolExecutor(TURNS) as pool, worker.at_work():
        posts = [pool.submit(turn, number) for number in range(TURNS)]
        for _ in range(TURNS // 2):
            assert half.acquire(timeout=30)
        assert http.delete(f"/v1/conversations/{conversation}").status_code == 200
        answers = [post.result() for post in posts]
        accepted = [answer.json()["id"] for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(accepted) >= TURNS // 2
        assert {(one.status_code, one.json()["error"]["param"]) for one in refused} <= {(404, "conversation")}
        until(lambda: all(row.status == "completed" for row in stored(database, accepted)), 60)
    assert http.get(f"/v1/conversations/{conversation}").status_code == 404
    for response_id in accepted:  # each keeps its answer
        assert http.get(f"/v1/responses/{response_id}").json()["output"][0]["content"][0]["text"] == "Hello!"
    with database.read() as session:
        assert session.scalars(select(Item).where(Item.conversation_id == conversation)).all() == []

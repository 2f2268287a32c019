"""A batch through a running house whose processes are killed on the way, and what must be true of its files."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from storage.models import Response
from storage.responses import TERMINAL
from tests.acceptance.house import House, until

MAX_OUTPUT_TOKENS = 4
PATIENCE = 1800.0


@dataclass(frozen=True)
class Outcome:
    """What a run has shown, once it is all as it must be."""

    lines: int
    seconds: float
    killed: tuple[str, ...]
    jobs: int
    second_attempts: int  # jobs whose first attempt was lost


def run(house: House, lines: int, killed: tuple[str, ...]) -> Outcome:
    """Run a batch of `lines` and kill these programs with SIGKILL, one after another, at even distances.

    The last is killed at half of them: enough are left that one is running when it is looked for.

    Raises:
        AssertionError: a line was not answered exactly once.
    """
    client = house.client()
    requests = [
        {
            "custom_id": f"line {number}",
            "method": "POST",
            "url": "/v1/responses",
            "body": {
                "model": "default",
                "input": f"Say {number}.",
                "max_output_tokens": MAX_OUTPUT_TOKENS,
                "metadata": {"line": str(number)},
            },
        }
        for number in range(lines)
    ]
    text = "".join(json.dumps(request) + "\n" for request in requests)
    file = client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
    started = time.monotonic()
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    batch_id, since = made.id, made.created_at
    for place, name in enumerate(killed, 1):
        enough = lines * place // (2 * len(killed))
        # Asked in SQL: the batch's own counts come later, when all may be over.
        until(f"{enough} answers", lambda: jobs(house, since, TERMINAL) >= enough, PATIENCE)  # noqa: B023
        until("a running job", lambda: jobs(house, since, ("in_progress",)))
        house.kill(name)
        if name == "api":
            house.start("api")
            house.wait_for_api()
        else:
            house.start_again(name)
    until("the end", lambda: client.batches.retrieve(batch_id).status == "completed", PATIENCE)
    seconds = time.monotonic() - started

    batch = client.batches.retrieve(batch_id)
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": lines, "completed": lines, "failed": 0}
    assert batch.error_file_id is None
    answers = [json.loads(line) for line in client.files.content(str(batch.output_file_id)).iter_lines()]
    assert [answer["custom_id"] for answer in answers] == [request["custom_id"] for request in requests]
    bodies: list[dict[str, Any]] = [answer["response"]["body"] for answer in answers]
    assert [body["metadata"]["line"] for body in bodies] == [str(number) for number in range(lines)]
    assert all(body["status"] in ("completed", "incomplete") and body["usage"] for body in bodies)
    ids = {body["id"] for body in bodies}
    assert len(ids) == lines
    with house.database.read() as session:
        # Jobs of this batch alone: each has its line's metadata, and was made after the batch.
        rows = session.execute(
            select(Response.id, Response.attempt).where(Response.tier == "flex", Response.created_at >= since)
        ).all()
    assert {row.id for row in rows} == ids, "a line became more than one job"
    assert len(rows) == lines
    return Outcome(lines, seconds, killed, len(rows), sum(row.attempt > 1 for row in rows))


def jobs(house: House, since: float, statuses: tuple[str, ...]) -> int:
    """Return how many of the batch's jobs have one of these statuses."""
    with house.database.read() as session:
        query = select(func.count()).where(
            Response.tier == "flex", Response.created_at >= since, Response.status.in_(statuses)
        )
        return session.scalar(query) or 0

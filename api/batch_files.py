"""The files that a batch writes: a line for each request, answers in one file, errors in the other."""

from __future__ import annotations

import json
from collections.abc import Iterator

from api.batch_lines import ENDPOINTS
from storage.batch_models import Batch
from storage.batch_work import Answered
from storage.models import Json

# Why a line has no answer, by how its batch ended.
UNANSWERED = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed, because its batch was cancelled."),
    "completed": ("response_gone", "The response to this request was deleted before its batch ended."),
}


def lines(batch: Batch, answered: list[Answered]) -> Iterator[tuple[bool, bytes]]:
    """Yield each request's line, and whether it is an answer."""
    for each in answered:
        shown = _line(batch, each)
        good = each.line.state == "completed" and shown["response"] is not None
        yield good, json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _line(batch: Batch, answered: Answered) -> Json:
    line, row = answered.line, answered.response
    name = f"{batch.id.removeprefix('batch_')}_{line.ordinal}"
    response, error = None, None
    if line.refusal is not None:
        response = {**line.refusal, "request_id": f"req_{name}"}
    elif row is not None and row.status != "cancelled":
        status_code, body = ENDPOINTS[batch.endpoint].show(row, answered.output)
        response = {"status_code": status_code, "request_id": f"req_{name}", "body": body}
        if row.error is not None:
            error = {"code": row.error["code"], "message": row.error["message"]}
    else:
        code, message = UNANSWERED[str(batch.ending)]
        error = {"code": code, "message": message}
    return {"id": f"batch_req_{name}", "custom_id": line.custom_id, "response": response, "error": error}

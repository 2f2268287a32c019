"""/v1/completions: go on with a text, as the model alone would: for evaluations and for prompts of one's own making."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api import calls, completion_objects, completion_submission, idempotency, route
from api.completion_chunks import CompletionChunks
from api.completion_schemas import CreateCompletion
from api.services import Calling, Held, Project

routes = route.router("completions")

OBJECT_OR_CHUNKS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The Completion object, or its chunks.", "content": {"text/event-stream": {}}}
}


@routes.post("/completions", responses=OBJECT_OR_CHUNKS)
async def create(
    request: Request, services: Held, caller: Calling, project_id: Project, body: CreateCompletion
) -> Response:
    """Go on with each prompt. Every answer is a job like a response's, which outlives its worker."""
    completion_submission.check(body, services.settings)
    key = await idempotency.key_of(request)
    await services.limits.charge(request, caller, completion_submission.cost(body))
    new = completion_submission.jobs(body, services.settings)
    call = await run_in_threadpool(calls.accept, services, project_id, new, key, "prompt")
    request.state.response_id = call.ids[0]
    if body.stream:
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return call.stream(CompletionChunks(call.ids[0], body, include_usage=usage))
    answered = await call.wait(request)
    if isinstance(answered, Response):
        return answered
    return JSONResponse(completion_objects.completion(answered, body.choices))

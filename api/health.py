"""/livez and /readyz, for whoever runs the process. They need no key and tell no secrets."""

from __future__ import annotations

import anyio.to_thread
from fastapi import APIRouter
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse

from api.services import Held, Services
from migrations.run import is_current

routes = APIRouter(tags=["health"])


@routes.get("/livez")
async def livez() -> JSONResponse:
    """The process's event loop turns."""
    return JSONResponse({"status": "ok"})


@routes.get("/readyz", responses={503: {"description": "It cannot: `checks` says why."}})
async def readyz(request: Request, services: Held) -> JSONResponse:
    """The process can accept jobs: the database answers and has this version's schema.

    The broker is reported and does not decide: jobs are accepted without it and sent when it is back.
    """
    # Not in the threads of other requests: an outage that fills them must not make this answer wait.
    migrated = getattr(request.app.state, "migrated", False)
    checks = await anyio.to_thread.run_sync(_checks, services, migrated, limiter=services.slow_calls)
    ready = checks["database"] == checks["schema"] == "ok"
    # Schemas only go forward, and a newer one serves this version too: once is enough.
    request.app.state.migrated = migrated or ready
    return JSONResponse({"status": "ok" if ready else "not ready", "checks": checks}, 200 if ready else 503)


def _checks(services: Services, migrated: bool) -> dict[str, str]:
    checks = {"database": "unreachable", "schema": "unknown", "broker": "ok"}
    try:
        services.database.ping()
        checks["database"] = "ok"
        migrated = migrated or is_current(services.database)
        checks["schema"] = "ok" if migrated else "not migrated: run `qwenq migrate`"
    except SQLAlchemyError:
        pass
    try:
        services.redis.ping()
    except RedisError:
        checks["broker"] = "unreachable"
    return checks

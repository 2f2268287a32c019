"""From an exception to the answer: the one place where the service's own errors become HTTP.

What is not listed here is a defect. `api.gate` answers it with a 500 and writes the traceback to the log.
"""

from __future__ import annotations

from typing import Any

import structlog
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from api import errors, validation
from storage.errors import Conflict, NotFound

log = structlog.get_logger(__name__)


async def _api_error(_request: Request, error: errors.ApiError) -> Response:
    return errors.answer(
        error.status,
        error.message,
        type_=error.type,
        param=error.param,
        code=error.code,
        headers=error.headers,
    )


async def _routing(request: Request, error: HTTPException) -> Response:
    """No such path, or not this method on it."""
    here = f"{request.method} {request.url.path}"
    message, code, headers = f"There is no '{here}'.", "not_found", error.headers
    if error.status_code == 405:
        allowed = _methods(request, (error.headers or {}).get("Allow", ""))
        message, code = f"There is no '{here}': this path takes {allowed}.", "method_not_allowed"
        headers = {"allow": allowed}
    return errors.answer(error.status_code, message, type_=errors.INVALID_REQUEST, code=code, headers=headers)


def _methods(request: Request, named: str) -> str:
    """Return all methods of the path, by the document; Starlette names only those of the first route that has it."""
    paths = request.app.openapi()["paths"]
    here = request.url.path
    # A path that is spelled out comes before one with an id at that place.
    known = [here] if here in paths else [path for path in paths if compile_path(path)[0].fullmatch(here)]
    found = {method.upper() for path in known for method in paths[path]}
    return ", ".join(sorted(found)) or named


async def _validation(request: Request, error: RequestValidationError) -> Response:
    return await _api_error(request, validation.first(error.errors()))


async def _not_found(request: Request, error: NotFound) -> Response:
    return await _api_error(request, errors.NoSuchObject(str(error)))


async def _conflict(request: Request, error: Conflict) -> Response:
    return await _api_error(request, errors.Refused(str(error)))


async def _database_away(request: Request, error: Exception) -> Response:
    cause = error.orig if isinstance(error, DBAPIError) else error
    log.error(
        "database unreachable",
        cause=str(cause).strip(),
        response_id=getattr(request.state, "response_id", None),
    )
    return await _api_error(request, errors.Unavailable("The database does not answer at the moment."))


# A connection that breaks, is refused or is not free in time: all of them pass.
HANDLERS: dict[int | type[Exception], Any] = {
    errors.ApiError: _api_error,
    HTTPException: _routing,
    RequestValidationError: _validation,
    NotFound: _not_found,
    Conflict: _conflict,
    OperationalError: _database_away,
    InterfaceError: _database_away,
    PoolTimeout: _database_away,
}

"""What the API answers when it cannot do what it was asked: one tree and one shape, OpenAI's.

    {"error": {"message", "type", "param", "code"}}

The status decides which exception the client libraries raise and whether they send the request again (they do
so for 408, 409, 429 and 5xx).

ApiError
├── BadRequest             400  the request cannot be right
│   ├── Unsupported        400  a parameter this service does not honour
│   └── UnknownParameter   400  a parameter that does not exist
├── InvalidKey             401  no API key, or a wrong one
├── NoSuchObject           404  nothing of this id, or of this name
├── Refused                409  the object's state does not allow it; sending it again changes nothing
├── TooLarge               413  the body
├── WrongMediaType         415  the body is not declared as what the path takes
├── TooMany                429  a limit of the caller's key, or the queue is full
├── Failed                 500  the job was accepted and came to no answer
└── Unavailable            503  come again in a moment
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
RATE_LIMIT = "rate_limit_error"


class ApiError(HTTPException):
    """Base of this tree. `param` names the offending part of the request, like ``input[0].content``."""

    status: int
    type: str = INVALID_REQUEST
    default_code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # A Starlette HTTPException, because FastAPI lets nothing else through while it reads a body.
        super().__init__(status_code=self.status, detail=message, headers=headers)
        self.message = message
        self.param = param
        self.code = code or self.default_code

    @property
    def shown(self) -> dict[str, str | None]:
        """The error as OpenAI's API shows it."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


class BadRequest(ApiError):
    """The request cannot be right, whatever the state of the service."""

    status = 400
    default_code = "invalid_value"


class Unsupported(BadRequest):
    """A parameter that exists elsewhere and that this service does not honour."""

    default_code = "unsupported_parameter"


class UnknownParameter(BadRequest):
    """A parameter that does not exist."""

    default_code = "unknown_parameter"


class InvalidKey(ApiError):
    """The caller did not show a valid API key."""

    status = 401
    default_code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"www-authenticate": "Bearer"})


class NoSuchObject(ApiError):
    """There is nothing of this id in the caller's project."""

    status = 404
    default_code = "not_found"


class Refused(ApiError):
    """The state of things does not allow it. The client libraries are told not to try again."""

    status = 409
    default_code = "conflict"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code, headers={"x-should-retry": "false"})


class TooLarge(ApiError):
    """The body, or a file, is larger than the service takes."""

    status = 413
    default_code = "request_too_large"


class WrongMediaType(ApiError):
    """The body is not declared as what the path takes: JSON, or a form for files."""

    status = 415
    default_code = "unsupported_content_type"


class TooMany(ApiError):
    """More is asked for than the caller, or the service, may take on now.

    Args:
        retry_after: seconds after which it may be sent again; None when it never will be taken.
    """

    status = 429
    type = RATE_LIMIT
    default_code = "rate_limit_exceeded"

    def __init__(self, message: str, *, code: str | None = None, retry_after: int | None) -> None:
        super().__init__(message, code=code, headers=_retry(retry_after))


class Failed(ApiError):
    """The job came to no answer. It was tried as often as makes sense, so the client libraries are told not to."""

    status = 500
    type = SERVER_ERROR
    default_code = "server_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"x-should-retry": "false"})


class Unavailable(ApiError):
    """The service cannot answer at the moment.

    Args:
        retry_after: seconds after which the same request may be sent again; None when it should not be.
    """

    status = 503
    type = SERVER_ERROR
    default_code = "service_unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after: int | None = 1) -> None:
        super().__init__(message, code=code, headers=_retry(retry_after))


def _retry(after: int | None) -> dict[str, str]:
    return {"x-should-retry": "false"} if after is None else {"retry-after": str(after)}


def shape(error: ApiError) -> dict[str, object]:
    """Return the body that an error is answered with."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def answer(
    status: int,
    message: str,
    *,
    type_: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return the error body with this status."""
    error = {"message": message, "type": type_, "param": param, "code": code}
    return JSONResponse({"error": error}, status, headers=headers)

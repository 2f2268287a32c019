"""One HTTP POST to a stranger's server: to a checked address only, and over when the deadline says so.

Built on httpcore, which follows no redirect, reads no proxy from the environment and decodes no content. The host is
resolved once and every address judged (`storage.egress`); the sockets are `worker.webhook_network`'s.
"""

import codecs
import functools
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpcore
import httpx

from storage.egress import EgressPolicy, Resolver, Target, UnresolvedHost, UnsafeUrl, check_url
from worker.webhook_network import CheckedNetwork, Progress

READ_LIMIT = 64 * 1024
EXCERPT_BYTES = 2048
_MAX_QUOTED = 200  # characters of a receiver's words inside ours


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one try. `error` says in a few words why there is no whole answer, or that it was a redirect."""

    status: int | None
    """The HTTP status; None when no valid head of an answer came."""
    error: str | None
    duration_ms: int
    excerpt: str
    """The beginning of the answer's body, at most 2048 characters, free of NUL."""
    retry_after: float | None
    """Seconds the receiver asks to wait; as given, however many."""

    @property
    def delivered(self) -> bool:
        """Tell whether the receiver took it: a 2xx, and its whole answer (or the first 64 KB) came in time."""
        return self.error is None and self.status is not None and 200 <= self.status < 300


def post(
    url: str,
    *,
    body: bytes,
    headers: Mapping[str, str],
    policy: EgressPolicy,
    deadline_seconds: float,
    resolver: Resolver | None = None,
    tls: ssl.SSLContext | None = None,
) -> Attempt:
    """Send `body` to `url` and read the answer, all within `deadline_seconds`; trouble is told, never raised.

    At most 64 KB of the answer are read, what lies behind them does not count. `resolver` stands in for the operating
    system's name lookup, `tls` for trust in the public certificate authorities (or those of `SSL_CERT_FILE`).
    """
    trust = (
        tls or _public_trust()
    )  # outside the try below: a wrong SSL_CERT_FILE is no trouble of the receiver's
    progress = Progress(deadline_seconds)
    response: httpcore.Response | None = None
    received = bytearray()
    try:
        target = check_url(url, policy, resolver=resolver, timeout=deadline_seconds)
        request = _request(target, body, headers)
        with httpcore.HTTPConnection(
            request.url.origin,
            ssl_context=trust,
            network_backend=CheckedNetwork(target, progress),
        ) as connection:
            response = connection.handle_request(request)
            for chunk in response.iter_stream():
                received += chunk
                if len(received) >= READ_LIMIT:
                    break
        error = _redirection(response)
    except UnsafeUrl as refusal:
        late = isinstance(refusal, UnresolvedHost) and progress.over
        error = _timed_out(progress) if late else refusal.reason
    except TimeoutError:
        if response:
            progress.doing = "reading the answer"
        error = _timed_out(progress)
    except OSError as trouble:
        error = _network_words(trouble)
    except httpcore.RemoteProtocolError as trouble:
        if progress.hung_up:
            part = "without an answer" if response is None else "in the middle of its answer"
            error = f"the receiver closed the connection {part}"
        else:
            error = f"not an HTTP answer: {_quoted(str(trouble))}"
    return Attempt(
        status=response.status if response else None,
        error=error,
        duration_ms=round(progress.elapsed * 1000),
        excerpt=_excerpt(received),
        retry_after=_retry_after(_header(response, b"retry-after")) if response else None,
    )


def _request(target: Target, body: bytes, headers: Mapping[str, str]) -> httpcore.Request:
    fields = {
        "user-agent": "qwenq-webhooks",
        "accept": "*/*",
        **{name.lower(): value for name, value in headers.items()},
        "host": target.host_header,
        "content-length": str(len(body)),
        "accept-encoding": "identity",  # the excerpt is for people to read
        "connection": "close",
    }
    return httpcore.Request(
        "POST",
        httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path),
        headers=[(name.encode(), value.encode()) for name, value in fields.items()],
        content=body,
    )


@functools.cache
def _public_trust() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _timed_out(progress: Progress) -> str:
    # Less than the deadline when the system itself gave up a connection.
    return f"timed out after {min(progress.elapsed, progress.seconds):.1f} s, {progress.doing}"


def _network_words(trouble: OSError) -> str:
    match trouble:
        case ssl.SSLCertVerificationError():
            return f"TLS certificate not trusted: {trouble.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return f"TLS failed: {(trouble.reason or str(trouble)).replace('_', ' ').lower()}"
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionResetError() | BrokenPipeError():
            return "connection reset by the receiver"
        case _:
            return os.strerror(trouble.errno).lower() if trouble.errno else str(trouble)


def _redirection(response: httpcore.Response) -> str | None:
    if not 300 <= response.status < 400:
        return None
    location = _header(response, b"location")
    where = f" to {_quoted(location)}" if location else ""
    return f"redirected{where}, which is not followed: register the final URL"


def _header(response: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for field, value in response.headers if field.lower() == name), "")


def _retry_after(value: str) -> float | None:
    """Read `Retry-After`: whole seconds or an HTTP date (RFC 9110, 10.2.3); None when it is neither."""
    if value.isdecimal() and len(value) <= 9:
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - time.time())


def _excerpt(received: bytearray) -> str:
    """Decode what is kept; a character cut in two by the limit is left out, other odd bytes become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(bytes(received[:EXCERPT_BYTES]), final=len(received) <= EXCERPT_BYTES)
    return text.replace("\0", "")  # PostgreSQL takes no NUL in a text


def _quoted(words: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in words)[:_MAX_QUOTED]

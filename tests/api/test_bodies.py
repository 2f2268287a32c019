"""Bodies that are too large, not JSON, or declared as something else: never a 500, never a stored row."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from api import strict_json
from api.errors import BadRequest

JSON = {"content-type": "application/json"}
LIMIT = 2**20

NOT_JSON = [
    b"{",
    b"{'input': 'a'}",
    b'{"input": "a",}',
    b'{"input": "a"} x',
    b'{"input": NaN}',
    b'{"input": "a", "temperature": Infinity}',
    b'{"input": "a", "temperature": -Infinity}',
    b'{"input": "a", "temperature": 1e999}',
    b'{"input": "a", "seed": ' + b"9" * 5000 + b"}",
    b'{"input": "a\x01b"}',
    b'{"input": "\xff\xfe"}',
    b'{"input": "\xed\xa0\x80"}',
    '{"input": "a"}'.encode("utf-16"),
    b"\xef\xbb\xbf" + b'{"input": "a"}',
    b"[" * 100_000,
    b'{"input": ' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"a":' * 200 + b"1" + b"}" * 200,
]


def test_what_is_not_json_is_refused(http: httpx.Client, rows: Callable[[], dict[str, int]]) -> None:
    before = rows()
    for body in NOT_JSON:
        answer = http.post("/v1/responses", content=body, headers=JSON)
        assert answer.status_code == 400, (body[:60], answer.text)
        assert answer.json()["error"]["code"] == "invalid_json", (body[:60], answer.text)
    for body in (b"null", b"7", b'"a"', b"[]", b"true"):
        answer = http.post("/v1/responses", content=body, headers=JSON)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_type"), body
    empty = http.post("/v1/responses", headers=JSON)
    assert (empty.status_code, empty.json()["error"]["code"]) == (400, "missing_body")
    assert rows() == before


def test_of_a_repeated_key_the_last_counts(http: httpx.Client) -> None:
    body = b'{"input": 7, "input": "a", "background": true}'
    assert http.post("/v1/responses", content=body, headers=JSON).status_code == 200


def test_other_media_types_are_refused(http: httpx.Client) -> None:
    body = b'{"input": "a", "background": true}'
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/xml", ""):
        answer = http.post("/v1/responses", content=body, headers={"content-type": media_type})
        assert answer.status_code == 415
        assert answer.json()["error"]["code"] == "unsupported_content_type"
    charset = {"content-type": "application/json; charset=utf-8"}
    assert http.post("/v1/responses", content=body, headers=charset).status_code == 200


def test_the_official_client_learns_why_its_body_is_too_large(
    client: OpenAI, rows: Callable[[], dict[str, int]]
) -> None:
    before = rows()
    with pytest.raises(openai.APIStatusError) as refused:
        client.responses.create(model="default", input="x" * (5 * LIMIT))
    assert refused.value.status_code == 413
    assert refused.value.code == "request_too_large"
    assert rows() == before


def test_a_body_without_a_length_is_bounded_while_it_is_read(http: httpx.Client) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(20):
            sent += 2**18
            yield b"x" * 2**18

    answer = http.post("/v1/responses", content=parts(), headers=JSON)
    assert answer.status_code == 413
    assert sent == 20 * 2**18


def test_a_far_larger_body_is_refused_by_its_announcement(http: httpx.Client) -> None:
    address = urlsplit(str(http.base_url))
    request = (
        f"POST /v1/responses HTTP/1.1\r\nHost: a\r\nAuthorization: {http.headers['authorization']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {2**34}\r\n\r\n"
    )
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=10) as raw:
        raw.sendall(request.encode())  # and not one byte of the body
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_reading_never_fails_otherwise(body: bytes) -> None:
    with suppress(BadRequest):
        strict_json.read(body)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_everything_else_reads_as_it_was_written(value: object) -> None:
    written = json.dumps(value)
    if "\\u0000" in written:
        with pytest.raises(BadRequest, match="NUL"):
            strict_json.read(written.encode())
    else:
        assert strict_json.read(written.encode()) == value

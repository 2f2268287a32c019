"""Files with the official client, and forms that no client would send."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import FileDeleted, FileObject
from sqlalchemy import update

from api import clerk
from api.settings import ApiSettings
from storage import retention
from storage.blobs import Folder
from storage.database import Database
from storage.models import File
from storage.retention import Keep
from tests.api.serving import Served
from tests.api.strict import check

LINES = b'{"custom_id": "a"}\n' * 3
LIMIT = 2**16


@pytest.fixture
def settings(settings: ApiSettings) -> ApiSettings:
    return settings.model_copy(update={"max_file_bytes": LIMIT})


def kept(settings: ApiSettings) -> list[str]:
    return sorted(path.name for path in settings.files_dir.iterdir()) if settings.files_dir.exists() else []


def form(boundary: str = "b", /, *parts: tuple[str, str | None, bytes]) -> dict[str, Any]:
    """A request with parts (name, file name, content), written by hand."""
    body = b""
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return {
        "content": body + f"--{boundary}--\r\n".encode(),
        "headers": {"content-type": f"multipart/form-data; boundary={boundary}"},
    }


GOOD = (("purpose", None, b"batch"), ("file", "a.jsonl", LINES))


def test_the_life_of_a_file(
    client: OpenAI, http: httpx.Client, stranger: httpx.Client, database: Database, settings: ApiSettings
) -> None:
    made = client.files.create(file=("Zürich 1.jsonl", LINES), purpose="batch")
    assert (made.bytes, made.filename, made.purpose) == (len(LINES), "Zürich 1.jsonl", "batch")
    assert made.expires_at == made.created_at + 30 * 86400
    shown = http.get(f"/v1/files/{made.id}").json()
    check(FileObject, shown)
    assert client.files.retrieve(made.id) == made
    content = client.files.content(made.id)
    assert content.read() == LINES
    assert content.response.headers["content-type"] == "application/octet-stream"
    assert content.response.headers["content-length"] == str(len(LINES))
    with database.read() as session:
        assert session.get_one(File, made.id).sha256 == hashlib.sha256(LINES).hexdigest()

    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert stranger.request(method, f"/v1/files/{made.id}{path}").status_code == 404
    assert stranger.get("/v1/files").json()["data"] == []

    assert kept(settings) == [made.id]
    check(FileDeleted, http.delete(f"/v1/files/{made.id}").json())
    assert kept(settings) == []
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert http.request(method, f"/v1/files/{made.id}{path}").status_code == 404


def test_lists_are_pages(client: OpenAI, http: httpx.Client) -> None:
    made = [client.files.create(file=(f"{n}", b"x"), purpose="batch").id for n in range(3)]
    assert [each.id for each in client.files.list()] == made[::-1]
    assert [each.id for each in client.files.list(limit=1, order="asc")] == made  # the client turns the pages
    page = http.get("/v1/files", params={"limit": 2, "after": made[2]}).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == ([made[1], made[0]], False)
    assert [each.id for each in client.files.list(purpose="batch_output")] == []
    assert http.get("/v1/files", params={"limit": 10_001}).status_code == 400
    assert http.get("/v1/files", params={"after": "file_x"}).status_code == 404


def test_a_file_ends_when_it_was_asked_to(
    client: OpenAI, http: httpx.Client, database: Database, settings: ApiSettings
) -> None:
    expires: Any = {"anchor": "created_at", "seconds": 3600}
    made = client.files.create(file=("a", b"x"), purpose="batch", expires_after=expires)
    assert made.expires_at == made.created_at + 3600
    with database.begin() as session:
        session.execute(update(File).values(expires_at=time.time() - 1))
    assert http.get(f"/v1/files/{made.id}").status_code == 404
    assert http.get("/v1/files").json()["data"] == []
    # The row goes first, the bytes once nobody can be about to write a row for them.
    assert retention.purge(database, Keep(None, None, 30))["files"] == 1
    blobs = Folder(settings.files_dir)
    assert clerk.tidy(database, blobs) == 0
    os.utime(settings.files_dir / made.id, (1, 1))
    other = client.files.create(file=("b", b"y"), purpose="batch").id
    os.utime(settings.files_dir / other, (1, 1))
    assert clerk.tidy(database, blobs) == 1
    assert kept(settings) == [other]


def test_a_key_makes_one_file(http: httpx.Client, settings: ApiSettings) -> None:
    def send(name: str, content: bytes, boundary: str) -> httpx.Response:
        request = form(boundary, ("purpose", None, b"batch"), ("file", name, content))
        request["headers"]["idempotency-key"] = "once"
        return http.post("/v1/files", **request)

    first = send("a", b"x", "one")
    assert first.status_code == 200
    again = send("a", b"x", "two")  # the clients make a new boundary for each try
    assert again.json() == first.json()
    assert send("a", b"y", "three").status_code == 409
    assert send("b", b"x", "four").status_code == 409
    assert kept(settings) == [first.json()["id"]]


@pytest.mark.parametrize("purpose", ["assistants", "fine-tune", "vision", "user_data", "evals"])
def test_other_purposes_are_refused_by_name(client: OpenAI, settings: ApiSettings, purpose: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=f"'{purpose}'") as refused:
        client.files.create(file=("a", b"x"), purpose=purpose)
    assert (refused.value.param, refused.value.code) == ("purpose", "unsupported_parameter")
    assert kept(settings) == []


def test_what_is_refused(http: httpx.Client, rows: Callable[[], Any], settings: ApiSettings) -> None:
    before = rows()
    purpose, file = GOOD
    long = b"x" * 2000
    cases: list[tuple[tuple[tuple[str, str | None, bytes], ...], str | None]] = [
        ((file,), "purpose"),
        ((("purpose", None, b"batched"), file), "purpose"),
        ((purpose,), "file"),
        ((purpose, ("file", "a", b"")), "file"),
        ((purpose, file, file), "file"),
        ((purpose, purpose, file), "purpose"),
        ((purpose, ("file", None, LINES)), "file"),
        ((purpose, ("other", "a", b"x"), file), "other"),
        ((purpose, file, ("colour", None, b"red")), "colour"),
        ((purpose, ("file", "a\0b", LINES)), "file"),
        ((purpose, ("file", "a" * 2000, LINES)), "file"),
        ((("purpose", None, long), file), "purpose"),
        ((("purpose", None, b"\xff"), file), "purpose"),
        ((purpose, file, ("expires_after[anchor]", None, b"created_at")), "expires_after.seconds"),
        ((purpose, file, ("expires_after[seconds]", None, b"3600")), "expires_after.anchor"),
        (
            (
                purpose,
                file,
                ("expires_after[anchor]", None, b"created_at"),
                ("expires_after[seconds]", None, b"60"),
            ),
            "expires_after.seconds",
        ),
        ((purpose, file, *((f"f{n}", None, b"") for n in range(30))), None),
        ((), "purpose"),
    ]
    for parts, param in cases:
        answer = http.post("/v1/files", **form("b", *parts))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), (parts, answer.text)
    whole = form("b", *GOOD)
    for cut in range(len(whole["content"]) - 4):
        answer = http.post("/v1/files", content=whole["content"][:cut], headers=whole["headers"])
        assert answer.status_code == 400, cut
        assert answer.json()["error"]["code"] in ("invalid_form", "missing_required_parameter")
    for media_type in ("application/json", "multipart/form-data", "multipart/mixed; boundary=b", ""):
        answer = http.post("/v1/files", content=whole["content"], headers={"content-type": media_type})
        assert answer.status_code == 415
    assert rows() == before
    assert kept(settings) == []
    assert http.post("/v1/files", **whole).status_code == 200


def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(
    client: OpenAI, http: httpx.Client, settings: ApiSettings
) -> None:
    assert client.files.create(file=("a", b"x" * LIMIT), purpose="batch").bytes == LIMIT
    before = kept(settings)
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("a", b"x" * (LIMIT + 1)), purpose="batch")
    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")

    def endless() -> Iterator[bytes]:
        whole = form("b", *GOOD)
        yield whole["content"][: -len(b"\r\n--b--\r\n")]
        for _ in range(6):
            yield b"x" * (LIMIT // 4)

    headers = form()["headers"]
    assert http.post("/v1/files", content=endless(), headers=headers).status_code == 413
    assert kept(settings) == before


def test_a_store_that_takes_no_more_is_a_503(http: httpx.Client, served: Served, tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way of the folder")
    answer = http.post("/v1/files", **form("b", *GOOD))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")

"""Keys: shown as a bearer token, remembered briefly, refused once revoked."""

from __future__ import annotations

import httpx
import openai
import pytest
from openai import OpenAI

from api.auth import REMEMBER_KEYS
from storage import keys
from storage.database import Database
from tests.api.fake_worker import until
from tests.api.serving import Served


def test_a_missing_or_wrong_key_is_refused_before_the_body_is_read(
    served: Served, database: Database
) -> None:
    with (
        OpenAI(base_url=f"{served.url}/v1", api_key="sk-qwenq-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.responses.create(model="default", input="a")
    assert refused.value.code == "invalid_api_key"
    for header in ("", "Bearer", "Basic abc", "Bearer \xff\xfe", "bearer x y"):
        answer = httpx.post(
            f"{served.url}/v1/responses",
            content=b"not json",
            headers={b"authorization": header.encode("latin-1")},
        )
        assert answer.status_code == 401, header
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{served.url}/v1/models").status_code == 401
    assert httpx.get(f"{served.url}/livez").status_code == 200


def test_a_revoked_key_is_refused_within_seconds(
    served: Served, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.auth.REMEMBER_SECONDS", 0.3)
    with database.begin() as session:
        new = keys.create(session, "ours", "short-lived")
    headers = {"authorization": f"Bearer {new.secret}"}
    with httpx.Client(base_url=served.url, headers=headers) as http:
        assert http.get("/v1/models").status_code == 200
        with database.begin() as session:
            assert keys.revoke(session, new.id)
        until(lambda: http.get("/v1/models").status_code == 401)


def test_a_known_key_costs_no_query(
    served: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert http.get("/v1/models").status_code == 200

    def no_query(*_: object) -> None:
        raise AssertionError("asked SQL")

    monkeypatch.setattr(keys, "caller_of", no_query)
    assert http.get("/v1/models").status_code == 200


def test_the_memory_is_bounded(
    served: Served, http: httpx.Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.auth.REMEMBER_KEYS", 3)
    with database.begin() as session:
        secrets = [keys.create(session, "ours", str(n)).secret for n in range(6)]
    for secret in secrets:
        assert http.get("/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code == 200
        assert http.get("/v1/models", headers={"authorization": f"Bearer {secret}x"}).status_code == 401
    assert len(served.services.keys._known) == 3
    assert REMEMBER_KEYS > 100

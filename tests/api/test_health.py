"""Health and the list of models."""

from __future__ import annotations

import httpx
import pytest
from openai import OpenAI
from openai.types import Model

from api.settings import ApiSettings
from migrations.run import upgrade
from tests.api.serving import serving
from tests.api.strict import check


def test_health_needs_no_key(client: OpenAI) -> None:
    address = str(client.base_url).removesuffix("/v1/")
    assert httpx.get(f"{address}/livez").json() == {"status": "ok"}
    ready = httpx.get(f"{address}/readyz")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ok",
        "checks": {"database": "ok", "schema": "ok", "broker": "ok"},
    }


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_database_that_was_not_migrated_is_not_ready(settings: ApiSettings, tmp_path: object) -> None:
    empty = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/empty.db"})
    with serving(empty) as served:
        ready = httpx.get(f"{served.url}/readyz")
        assert ready.status_code == 503
        assert "qwenq migrate" in ready.json()["checks"]["schema"]
        assert httpx.get(f"{served.url}/livez").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_schema_is_looked_at_until_it_is_right(
    settings: ApiSettings, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/later.db"})
    with serving(later) as served:
        assert httpx.get(f"{served.url}/readyz").status_code == 503
        upgrade(later.database_url)
        assert httpx.get(f"{served.url}/readyz").status_code == 200
        monkeypatch.setattr("api.health.is_current", None)  # cannot be called any more
        assert httpx.get(f"{served.url}/readyz").status_code == 200


def test_the_served_model(client: OpenAI, http: httpx.Client, settings: ApiSettings) -> None:
    (listed,) = http.get("/v1/models").json()["data"]
    check(Model, listed)
    assert listed["id"] == settings.model_name
    assert client.models.retrieve("default").id == settings.model_name
    assert [model.id for model in client.models.list()] == [settings.model_name]
    for name in ("gpt-6", "Qwen/Qwen-1_8B-Chat-Int4"):
        answer = http.get(f"/v1/models/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")

"""A wrong setting is refused at start, with its name and what it may be."""

from __future__ import annotations

import pytest
from cryptography.fernet import Fernet

from storage.settings import SettingsError, StorageSettings, load


@pytest.fixture
def good(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("QWENQ_SECRET_KEY", Fernet.generate_key().decode())
    return monkeypatch


def test_postgresql_is_always_reached_through_psycopg(good: pytest.MonkeyPatch) -> None:
    good.setenv("QWENQ_DATABASE_URL", "postgresql://user:p%40ss@db:5432/qwenq")
    assert load(StorageSettings).database_url == "postgresql+psycopg://user:p%40ss@db:5432/qwenq"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("QWENQ_DATABASE_URL", "mysql://x/y", "postgresql+psycopg://"),
        ("QWENQ_DATABASE_URL", "nonsense", "sqlite:///PATH"),
        ("QWENQ_REDIS_URL", "amqp://x", "redis://HOST:PORT/DB"),
        ("QWENQ_SECRET_KEY", "short", "Fernet"),
        ("QWENQ_LEASE_SECONDS", "0", "1 to 600"),
        ("QWENQ_LEASE_SECONDS", "soon", "1 to 600"),
        ("QWENQ_MAX_ATTEMPTS", "99", "1 to 20"),
        ("QWENQ_LOG_FORMAT", "xml", "console or json"),
        ("QWENQ_WEBHOOK_ALLOWED_NETWORKS", '["10.0.0.1/8"]', "JSON list"),
    ],
)
def test_a_wrong_value_is_named(good: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    good.setenv(variable, value)
    with pytest.raises(SettingsError) as refused:
        load(StorageSettings)
    assert variable in str(refused.value)
    assert says in str(refused.value)


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWENQ_SECRET_KEY", raising=False)
    with pytest.raises(SettingsError, match=r"QWENQ_SECRET_KEY is not set"):
        load(StorageSettings)

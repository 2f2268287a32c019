"""Settings that the API and the worker share: where SQL and Redis are, and the rules of the queue.

Every setting is an environment variable with the prefix ``QWENQ_``. `load` turns a wrong value into one
readable message that names the variable, so that a process refuses to start instead of failing at night.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from cryptography.fernet import Fernet
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

PREFIX = "QWENQ_"


class SettingsError(Exception):
    """A setting is missing or wrong; the message names the variable and what it may be."""


class DatabaseSettings(BaseSettings):
    """All that `qwenq migrate` and `qwenq keys` need: where SQL is."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    database_url: str = Field(
        "sqlite:///.data/qwenq.db",
        description="sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST:PORT/NAME",
    )

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        try:
            url = make_url(value)
        except ArgumentError:
            raise ValueError("not a database URL") from None
        if url.get_backend_name() == "postgresql":
            # Whatever driver the URL names or leaves out: psycopg 3 is the one we install.
            return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        if url.get_backend_name() != "sqlite" or not url.database:
            raise ValueError("only SQLite files and PostgreSQL are supported")
        return value


class BrokerSettings(BaseSettings):
    """Where the queue is: all that a process needs before it knows what it will do."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="redis://HOST:PORT/DB (Redis or Valkey)")

    @field_validator("redis_url")
    @classmethod
    def _known_broker(cls, value: str) -> str:
        if not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value


class StorageSettings(DatabaseSettings, BrokerSettings):
    """Where the state is kept and how long a worker may hold a job without a sign of life."""

    secret_key: SecretStr = Field(
        description="the Fernet key (32 bytes, url-safe base64) that webhook secrets are encrypted with; "
        "`qwenq secret-key` prints a new one",
    )
    webhook_allowed_networks: list[IPv4Network | IPv6Network] = Field(
        default_factory=list,
        description='a JSON list of private networks that webhooks may reach, e.g. ["10.1.0.0/16"]; none by default',
    )
    metrics_networks: list[IPv4Network | IPv6Network] = Field(
        default_factory=list,
        description='a JSON list of networks that may read /metrics, e.g. ["10.1.0.0/16"]; this machine may always',
    )
    lease_seconds: float = Field(
        15.0,
        ge=1,
        le=600,
        description="seconds a worker may hold a job without renewing its lease (1 to 600)",
    )
    max_attempts: int = Field(
        3, ge=1, le=20, description="how often a job may lose its worker before it is failed (1 to 20)"
    )
    job_timeout: float = Field(
        600.0,
        gt=0,
        le=86400,
        description="seconds a job may run from its first claim on, all attempts together (up to 86400); "
        "a request may ask for less with max_run_seconds",
    )
    log_format: str = Field("console", pattern="^(console|json)$", description="console or json")
    log_level: str = Field(
        "INFO",
        pattern="^(DEBUG|INFO|WARNING|ERROR)$",
        description="DEBUG, INFO, WARNING or ERROR",
    )

    @field_validator("secret_key")
    @classmethod
    def _fernet_key(cls, value: SecretStr) -> SecretStr:
        try:
            Fernet(value.get_secret_value())
        except ValueError:
            raise ValueError("not a Fernet key") from None
        return value


Settings = TypeVar("Settings", bound=BaseSettings)


def load(cls: type[Settings]) -> Settings:
    """Read `cls` from the environment.

    Raises:
        SettingsError: one line for each wrong or missing variable, with its name and what it may be.
    """
    try:
        return cls()
    except ValidationError as failure:
        lines = []
        for error in failure.errors():
            name = str(error["loc"][0])
            field = cls.model_fields[name]
            variable = f"{PREFIX}{name.upper()}"
            found = "is not set" if variable not in os.environ else f"is wrong: {error['msg']}"
            lines.append(f"{variable} {found}. It may be: {field.description}")
        raise SettingsError("\n".join(dict.fromkeys(lines))) from None

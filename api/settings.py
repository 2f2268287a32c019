"""Settings of the API process, besides those it shares with the worker."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from storage.settings import StorageSettings
from storage.webhook_secret import check_secret


class ApiSettings(StorageSettings):
    """Where to listen, what to serve and how much of it one request may ask for."""

    host: str = Field("127.0.0.1", description="the address to listen on, e.g. 0.0.0.0")
    port: int = Field(8000, ge=0, le=65535, description="the TCP port to listen on (0 takes a free one)")
    model_name: str = Field(
        "Qwen-1_8B-Chat-Int4",
        min_length=1,
        max_length=100,
        description="the name under which the model is served, besides `default`",
    )
    model: Path | None = Field(
        None,
        description="the folder of the checkpoint, to count tokens with; unset: input_tokens is answered with 503",
    )
    context_length: int = Field(
        8192, ge=1, le=1_000_000, description="tokens of prompt and answer together; bounds max_output_tokens"
    )
    max_body_bytes: int = Field(
        2**20, ge=1024, le=2**30, description="the largest request body, in bytes (1024 to 1073741824)"
    )
    max_input_characters: int = Field(
        200_000, ge=1, description="the most text, in characters, that one request's input may hold"
    )
    max_queued: int = Field(
        100_000, ge=1, description="how many jobs may wait; beyond that new ones are refused with 429"
    )
    requests_per_minute: int = Field(
        0,
        ge=0,
        description="jobs a key may submit a minute, unless it has a limit of its own; 0 for no limit",
    )
    tokens_per_minute: int = Field(
        0,
        ge=0,
        description="tokens a key may be charged a minute, unless it has a limit of its own; 0 for no limit",
    )
    files_dir: Path = Field(
        Path(".data/files"),
        description="the folder of uploaded files and of what batches write; all API processes share it",
    )
    max_file_bytes: int = Field(
        200 * 2**20, ge=1024, le=2**40, description="the largest file that may be uploaded, in bytes"
    )
    batch_window: int = Field(
        64,
        ge=1,
        le=10_000,
        description="how many lines of a project's batches may wait in the queue or run at a time (1 to 10000)",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="whsec_ and the base64 of 24 to 64 bytes; signs webhooks whose request brought no secret",
    )
    # More of them wait for the interpreter and not for the database: twelve cost a submission half as much again.
    api_threads: int = Field(
        6, ge=1, le=100, description="requests that may be in the database at once (1 to 100)"
    )
    drain_seconds: int = Field(
        10, ge=1, le=600, description="how long running requests may take to end at a stop (1 to 600)"
    )

    @field_validator("webhook_secret")
    @classmethod
    def _signing_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_secret(value.get_secret_value())
        return value

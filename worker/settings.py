"""Settings of the worker processes, beside those that `storage.settings` holds for all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from storage.retention import Keep
from storage.settings import StorageSettings


class WorkerSettings(StorageSettings):
    """What every worker role needs, the webhook worker too."""

    concurrency: int = Field(
        16, ge=1, le=512, description="how many jobs (or webhooks) one worker runs side by side (1 to 512)"
    )
    health_port: int = Field(
        0, ge=0, le=65535, description="a port for /livez and /metrics of this worker, 0 for none"
    )
    health_host: str = Field(
        "", description="the address that health_port listens on, e.g. 127.0.0.1; empty for all"
    )
    webhook_timeout: float = Field(
        15.0, gt=0, le=120, description="seconds a receiver has for its whole answer (up to 120)"
    )
    webhook_receiver_tries: int = Field(
        4, ge=1, le=512, description="how many webhooks are sent to one receiver side by side (1 to 512)"
    )
    webhook_retry_delays: list[float] = Field(
        [5, 300, 1800, 7200, 18000, 36000, 36000],
        description="a JSON list of seconds between the tries of a webhook; one more try than entries",
    )
    keep_responses_days: int | None = Field(
        None,
        ge=1,
        description="days that a response is kept after its end; unset: for ever. "
        "Completions that are not to be stored are deleted after a day in any case",
    )
    keep_conversations_days: int | None = Field(
        None, ge=1, description="days that a conversation is kept after its last use; unset: for ever"
    )
    keep_webhooks_days: int = Field(
        30, ge=1, description="days that webhook events and their deliveries are kept"
    )

    @property
    def webhook_receiver_limit(self) -> int:
        """Tries of one receiver at a time: never more than half of the threads, so that others get through."""
        return min(self.webhook_receiver_tries, max(1, self.concurrency // 2))

    @property
    def keep(self) -> Keep:
        """For how long data is kept."""
        return Keep(self.keep_responses_days, self.keep_conversations_days, self.keep_webhooks_days)


class GenerateSettings(WorkerSettings):
    """What a worker with an engine needs."""

    model: Path = Field(
        description="the folder of the checkpoint; `qwenq model pull` or `qwenq model demo` makes one"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto, cpu or cuda")
    weights: Literal["int4", "dequantized"] = Field(
        "int4",
        description="int4 (weights stay packed in memory) or dequantized (4 to 8 times the memory)",
    )
    threads: int | None = Field(None, ge=1, le=256, description="CPU threads of the engine; unset: all cores")
    kv_cache_tokens: int | None = Field(
        None,
        ge=16,
        description="tokens of all conversations whose keys and values the engine keeps; unset: by the memory",
    )
    kv_cache: Literal["auto", "int8"] = Field(
        "auto",
        description="auto (16 bits; 32 on a CPU where the C++ kernels do not serve) or int8 (half of 16, rounded)",
    )
    head_bits: Literal["16", "8"] = Field(
        "16",
        description="bits of a weight of the output head: 16 as in the checkpoint, or 8 (faster, rounded)",
    )
    layer_copies: Literal["auto", "never"] = Field(
        "auto",
        description="on a GPU also keep the layers in 16 bits, for steps of many rows: auto (where it takes less than "
        "a tenth of the free memory) or never",
    )
    attention: str | None = Field(
        None, description="an attention kernel by name; unset: the fastest that can serve (the log names it)"
    )
    deterministic: bool = Field(
        False, description="a seeded answer is the same whatever else runs beside it; slower"
    )
    checkpoint_seconds: float = Field(
        1.0,
        gt=0,
        le=60,
        description="seconds between checkpoints of a running answer (up to 60); more where more than 8 run",
    )
    drain_seconds: float = Field(
        20.0, ge=0, le=600, description="seconds running answers may take to end after SIGTERM (0 to 600)"
    )
    engine_start_seconds: float = Field(
        600.0, gt=0, description="seconds the engine may take to load its model"
    )

    @field_validator("model")
    @classmethod
    def _is_checkpoint(cls, value: Path) -> Path:
        if not (value / "config.json").is_file():
            raise ValueError(f"there is no config.json in {value}")
        return value

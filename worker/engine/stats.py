"""What the engine counts. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. The first four are of the moment; the others grow from the start of the process.

    cached_tokens   positions that were found in the prefix cache instead of computed.
    prefill_tokens  positions computed of prompts (and of answers after a preemption); decode_tokens one a token.
    host_seconds    of all steps together, the part that is not the runner's: planning, texts, events.
    device_seconds  the runner's.
    """

    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    steps: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    host_seconds: float = 0.0
    device_seconds: float = 0.0

    @property
    def host_ms_per_step(self) -> float:
        return 1000 * self.host_seconds / self.steps if self.steps else 0.0

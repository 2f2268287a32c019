"""What goes over the pipe between the worker and its engine process. No torch.

To the engine: one `EngineConfig`, then `GenerationRequest` and `Cancel`.
From the engine: `Heartbeat` all the time; one `EngineInfo` or `StartFailed`; then lists of events, those of
a request in the order in which they happened (`worker.engine.outgoing`). Either side ends when the other closes the
pipe.
"""

from dataclasses import dataclass

from worker.engine.config import EngineConfig, EngineInfo
from worker.engine.request import Event, GenerationRequest
from worker.engine.stats import EngineStats


@dataclass(frozen=True, slots=True)
class Cancel:
    """End this request with `Finished(reason="cancelled")`; nothing happens if it has ended already."""

    request_id: str


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The engine cannot run with its configuration, and ends. `message` is for the operator."""

    message: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The process lives and its loop goes round; `stats` once there is a loop."""

    stats: EngineStats | None


ToEngine = EngineConfig | GenerationRequest | Cancel
FromEngine = Heartbeat | EngineInfo | StartFailed | list[Event]

"""The linear backends in order of preference, and the choice among them.

The first that can serve a layer is taken. A backend that was asked for by name must serve it: nothing is replaced in
silence.
"""

import torch

from worker.model.cpu.linear import CpuKernels
from worker.model.errors import BackendError
from worker.model.gpu.linear import TritonInt4
from worker.model.int4pack import Int4PackCpu, Int4PackCuda
from worker.model.linear import GptqWeight, LinearBackend, ReferenceBackend

BACKENDS: tuple[LinearBackend, ...] = (
    TritonInt4(),
    Int4PackCuda(),
    CpuKernels(),
    Int4PackCpu(),
    ReferenceBackend(),
)


def choose(weight: GptqWeight, dtype: torch.dtype, *, forced: str | None = None) -> LinearBackend:
    """The backend for one layer. BackendError when the `forced` one is unknown or cannot serve it."""
    candidates = [backend for backend in BACKENDS if forced is None or backend.name == forced]
    if not candidates:
        known = ", ".join(backend.name for backend in BACKENDS)
        raise BackendError(f"there is no linear backend {forced!r}; known are {known}")
    reasons = []
    for backend in candidates:
        reason = backend.why_not(weight, dtype)
        if reason is None:
            return backend
        reasons.append(f"{backend.name} {reason}")
    raise BackendError("; ".join(reasons))

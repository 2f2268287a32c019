"""What this machine's GPU and Triton allow."""

import functools
import importlib.util
import os

import torch

from worker.model.gpu import cuda

# Triton's interpreter runs kernels on a CPU, for tests: it knows neither inline assembly nor dependent launch.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on `device`; None when they can."""
    if device.type != "cuda" and not INTERPRETED:
        return f"runs on NVIDIA GPUs, not on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton, which comes with torch's CUDA builds on Linux and is not installed"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            return f"needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return None


@functools.cache
def dependent_launch(device: torch.device) -> bool:
    """Whether a kernel may start while the one before it ends (programmatic dependent launch)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def why_not_compiled(device: torch.device) -> str | None:
    """Why the kernels in CUDA C++ cannot run on `device`; None when they can."""
    if device.type != "cuda":
        return f"runs on NVIDIA GPUs, not on {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major not in (9, 10):  # clusters, and 227 KB of shared memory a block
        return f"needs compute capability 9 or 10, this GPU has {major}.{minor}"
    return cuda.why_not()

"""What this machine's memory and arithmetic allow, measured, and what a step of the model needs of both."""

import dataclasses
import functools
import time
from collections.abc import Callable

import torch

from worker.engine.kv_cache import KVCache
from worker.model.qwen import QwenModel


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second at which this process reads an array much larger than any cache: the best of several."""
    # On a GPU so large that the launch does not count.
    array = torch.ones(1 << (29 if device.type == "cuda" else 27), dtype=torch.float32, device=device)
    return array.nbytes / _best(lambda: array.sum().item(), device, repeats=7)


def multiply_rate(device: torch.device) -> float:
    """Operations per second of torch's large matrix product, in fp32 or bf16, whichever is faster."""
    size, seconds = (8192 if device.type == "cuda" else 1024), float("inf")
    for dtype in (torch.float32, torch.bfloat16):
        left = torch.randn(size, size, device=device).to(dtype)
        seconds = min(seconds, _best(functools.partial(torch.mm, left, left), device, repeats=5))
    return 2 * size**3 / seconds


def weight_bytes(model: QwenModel) -> int:
    """Bytes of weights that a step reads: all but the embedding, of which it reads a row a token."""
    found: dict[int, int] = {}
    _collect([model.blocks, model.ln_f, model.lm_head], found)
    return sum(found.values())


def token_bytes(model: QwenModel, cache: KVCache) -> int:
    """Bytes of keys and values of one position, in all layers."""
    return KVCache.bytes_per_token(model.config, cache.dtype, quantized=cache.quantized)


def token_operations(model: QwenModel, *, head: bool) -> int:
    """Operations of the matrix products for one token; attention not counted."""
    config = model.config
    layer = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.mlp_size
    return 2 * (config.num_layers * layer + head * config.hidden_size * config.vocab_size)


def _best(work: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """Seconds of the fastest of several calls."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best


def _collect(thing: object, found: dict[int, int]) -> None:
    """Bytes by address of the memory behind nested sequences and dataclasses; what is held twice counts once."""
    if isinstance(thing, torch.Tensor):
        memory = thing.untyped_storage()
        found[memory.data_ptr()] = memory.nbytes()
    elif isinstance(thing, list | tuple):
        for part in thing:
            _collect(part, found)
    elif dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            _collect(getattr(thing, field.name), found)

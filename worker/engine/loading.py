"""From the configuration to an engine that is ready to run: threads, device, tokenizer, checkpoint, KV cache."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch

from worker.engine import attention
from worker.engine.attention import AttentionBackend, AttentionShape, DecodeAttention
from worker.engine.blocks import BlockManager
from worker.engine.config import EngineConfig, EngineInfo
from worker.engine.core import EngineCore
from worker.engine.errors import EngineStartError
from worker.engine.graphs import GraphRunner
from worker.engine.invariant import batch_invariant
from worker.engine.kv_cache import KVCache
from worker.engine.runner import EagerRunner, Runner
from worker.engine.scheduler import Scheduler
from worker.model.checkpoint import load_model
from worker.model.config import QwenConfig, load_config
from worker.model.cpu import library as cpu_library
from worker.model.errors import BackendError, CheckpointError
from worker.model.qwen import QwenModel
from worker.model.tokenizer import Tokenizer

BLOCK_SIZE = 16
# Tokens computed in one step: enough to use the device well, few enough that running answers do not wait long.
STEP_TOKENS = {"cpu": 128, "cuda": 2048}
# The same while no answer is running that would wait.
ALONE_TOKENS = {"cpu": 128, "cuda": 8192}
# What the KV cache may take unless a setting says otherwise.
FREE_GPU_MEMORY = 0.85
HOST_MEMORY = 0.25
CONTEXTS_ON_CPU = 4

logger = logging.getLogger(__name__)


def load(config: EngineConfig) -> tuple[EngineCore, EngineInfo]:
    """Raises `CheckpointError` or `EngineStartError` with what is wrong and what to do."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = _device(config)
    rows = load_config(config.model_path).vocab_size
    tokenizer = Tokenizer.load(config.model_path)
    if rows < tokenizer.n_vocab:
        raise CheckpointError(
            f"{config.model_path}: the rank file makes {tokenizer.n_vocab} tokens, but the model has only "
            f"{rows} (vocab_size in config.json): they belong to different models"
        )
    try:
        model = load_model(
            config.model_path,
            device=device,
            weights=config.weights,
            head_bits=config.head_bits,
            copies=config.layer_copies == "auto",
        )
    except BackendError as error:
        raise EngineStartError(f"the model cannot be computed as it is set: {error}") from error
    core = assemble(model, tokenizer, config)
    return core, EngineInfo(
        model=config.model_path.resolve().name,
        device=_describe(device),
        backends=core.runner.backends,
        context_length=core.context_length,
        n_vocab=tokenizer.n_vocab,
    )


def assemble(
    model: QwenModel,
    tokenizer: Tokenizer,
    config: EngineConfig,
    *,
    block_size: int = BLOCK_SIZE,
    graphs: bool | None = None,
    now: Callable[[], float] = time.monotonic,
) -> EngineCore:
    """An engine around a model that is loaded. `EngineStartError` when a setting cannot be met.

    graphs  whether steps are launched ahead, in CUDA graphs where the device has them; by default on GPUs alone.
    """
    device, quantized = model.device, config.kv_cache == "int8"
    if device.type == "cpu":
        cpu_library.why_not()  # what is to be compiled is compiled now: the sampler wants it in any case
    if config.deterministic:
        model = batch_invariant(model)
    shape = AttentionShape(
        num_heads=model.config.num_heads,
        head_dim=model.config.head_dim,
        block_size=block_size,
        dtype=model.dtype,
        quantized=quantized,
        deterministic=config.deterministic,
    )
    try:
        backend, dtype = _attention(device, shape, config.attention)
    except BackendError as error:
        raise EngineStartError(f"the attention cannot be computed as it is set: {error}") from error
    a_token = KVCache.bytes_per_token(model.config, dtype, quantized=quantized)
    tokens = config.kv_cache_tokens or _default_tokens(model.config, config, device, a_token)
    blocks = -(-tokens // block_size)
    wanted = device.type == "cuda" if graphs is None else graphs
    ahead = wanted and isinstance(backend, DecodeAttention) and not config.deterministic
    cache = KVCache(
        model.config,
        blocks=blocks + ahead,  # one for rows that fill a graph up
        block_size=block_size,
        dtype=dtype,
        device=device,
        quantized=quantized,
    )
    logger.info(
        "attention %s; KV cache of %d tokens, %.2f GB",
        backend.name,
        blocks * block_size,
        tokens * a_token / 1e9,
    )
    runner: Runner
    if ahead and isinstance(backend, DecodeAttention):
        runner = GraphRunner(model, cache, backend, n_vocab=tokenizer.n_vocab, max_running=config.max_running)
    else:
        runner = EagerRunner(model, cache, backend, n_vocab=tokenizer.n_vocab, by_row=config.deterministic)
    return EngineCore(
        runner,
        Scheduler(
            BlockManager(blocks, block_size),
            max_running=config.max_running,
            step_tokens=config.step_tokens or STEP_TOKENS[device.type],
            alone_tokens=config.step_tokens or ALONE_TOKENS[device.type],
        ),
        tokenizer,
        context_length=min(model.config.context_length, blocks * block_size),
        now=now,
    )


def _attention(
    device: torch.device, shape: AttentionShape, forced: str | None
) -> tuple[AttentionBackend, torch.dtype]:
    """The attention, and the dtype of the cache. `BackendError` where none can serve."""
    if device.type != "cpu":
        return attention.choose(device, shape, forced=forced), shape.dtype
    # Our kernels read 16 bits as fast as memory gives them; torch's are ten times slower in 16 bits without AMX. fp16
    # rounds eight times less than bf16, and what it cannot hold makes logits that are not finite.
    if shape.dtype != torch.float32 and not shape.quantized:
        with suppress(BackendError):
            return attention.choose(device, replace(shape, dtype=torch.float16), forced=forced), torch.float16
    return attention.choose(device, replace(shape, dtype=torch.float32), forced=forced), torch.float32


def _default_tokens(model: QwenConfig, config: EngineConfig, device: torch.device, a_token: int) -> int:
    """At most what can run at once, and at least one context: where even that does not fit, allocating it says so."""
    if device.type == "cuda":
        room, contexts = FREE_GPU_MEMORY * torch.cuda.mem_get_info(device)[0], config.max_running
    else:
        room = HOST_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        contexts = min(config.max_running, CONTEXTS_ON_CPU)
    return max(model.context_length, min(contexts * model.context_length, int(room / a_token)))


def _device(config: EngineConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise EngineStartError(
            f"the device is set to cuda, but torch {torch.__version__} finds no usable GPU; "
            "set it to auto or cpu, or install a torch built for this machine's CUDA driver"
        )
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"

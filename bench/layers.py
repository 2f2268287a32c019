"""Each GPU kernel of a layer against the bytes that it must read.

    python bench/layers.py [--rows 1,2,4] [--contexts 512]

Times are of CUDA graph replays over many sets of weights or caches, 200 MB and more together, so that nothing is found
in the chip's cache. A product stands beside the error against fp32, of random weights of Qwen-1.8B's shapes. For a
product all tiles are tried that may be in `worker.model.gpu.linear.TILES`; the fastest comes first.
"""

import statistics
from collections.abc import Callable
from typing import Annotated

import limits
import torch
import torch.nn.functional as F
import typer

from worker.engine.gpu.attention import TritonPaged, cut_for
from worker.engine.kv_cache import KVCache
from worker.model.config import QwenConfig
from worker.model.gpu import support
from worker.model.gpu.linear import FEW, GpuLinear
from worker.model.rope import rotation

SHAPES = {"c_attn": (2048, 6144), "c_proj": (2048, 2048), "gate and up": (2048, 11008), "mlp": (5504, 2048)}
TILES = [(4, 256, 4), (8, 256, 4), (16, 256, 4), (8, 256, 8), (8, 512, 8), (8, 128, 4)]
CONFIG = QwenConfig(
    model_type="qwen",
    hidden_size=2048,
    num_hidden_layers=24,
    num_attention_heads=16,
    kv_channels=128,
    intermediate_size=11008,
    vocab_size=151936,
)
DEVICE = torch.device("cuda")


def microseconds(launch: Callable[[], object], calls: int) -> float:
    """Of one of the `calls` that `launch` makes: the median of five times 20 replays."""
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    times = []
    for _ in range(6):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(20):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 20 * 1000 / calls)
    return statistics.median(times[1:])


def products(name: str, rows: int, bandwidth: float) -> None:
    """One kind of product with everything that is fused into it."""
    inputs, outputs = SHAPES[name]
    norm, silu, add = inputs == 2048 and outputs != 2048, name == "gate and up", outputs == 2048
    sets = []
    for _ in range(int(200e6 // (inputs * outputs / 2)) + 1):
        words = torch.randint(-(2**31), 2**31, (outputs, inputs // 8), device=DEVICE, dtype=torch.int32)
        scales = (0.001 + 0.004 * torch.rand(outputs, inputs // 128, device=DEVICE)).half()
        sets.append(GpuLinear(words, scales, None, inputs, 128))
    x = torch.randn(rows, inputs, device=DEVICE).to(torch.float32 if norm else torch.float16)
    gamma = torch.rand(inputs, device=DEVICE) + 0.5
    right = (F.rms_norm(x, (inputs,), gamma, 1e-6) if norm else x.float()) @ sets[0].dense().float().T
    right = F.silu(right[:, 0::2]) * right[:, 1::2] if silu else right
    found = []
    for tile in TILES:
        out = torch.zeros_like(right, dtype=torch.float32 if add else torch.float16)

        def run(one: GpuLinear, out: torch.Tensor = out, tile: tuple[int, int, int] = tile) -> torch.Tensor:
            return one.few(x, out, gamma=gamma if norm else None, eps=1e-6, silu=silu, add=add, tile=tile)

        error = ((run(sets[0]).float() - right).norm() / right.norm()).item()
        found.append((microseconds(lambda run=run: [run(one) for one in sets], len(sets)), tile, error))
    least = 1e6 * (inputs * outputs / 2 + inputs / 128 * outputs * 2) / bandwidth
    shown = "; ".join(f"{time:.2f} {tile} {error:.1e}" for time, tile, error in sorted(found))
    print(f"{name}, {rows} rows: limit {least:.1f} us | {shown}")


def attention(rows: int, context: int, bandwidth: float, *, quantized: bool) -> None:
    """One layer's attention of `rows` answers behind so many tokens."""
    blocks = context // 16 + 1
    how = {"blocks": rows * blocks, "block_size": 16, "dtype": torch.float16, "device": DEVICE}
    config = CONFIG.model_copy(update={"num_layers": 8 if rows * context < 40_000 else 2})
    cache = KVCache(config, **how, quantized=quantized)
    for stored in cache.layers:
        stored.copy_(torch.randint(-100, 100, (stored.shape[-1],), device=DEVICE))
    for scales in cache.scales:
        scales.fill_(0.01)
    tables = torch.randperm(rows * blocks, device=DEVICE).view(rows, blocks).to(torch.int32)
    positions = torch.full((rows,), context - 1, device=DEVICE)
    turns = rotation(8192, 128, 10000.0, DEVICE).at(positions)
    qkv, kernel, layers = torch.randn(rows, 48, 128, device=DEVICE).half(), TritonPaged(), len(cache.layers)
    time = microseconds(
        lambda: [kernel.decode(qkv, layer, cache, tables, positions, turns) for layer in range(layers)],
        layers,
    )
    per_token = KVCache.bytes_per_token(CONFIG, torch.float16, quantized=quantized) / CONFIG.num_layers
    least = 1e6 * rows * context * per_token / bandwidth
    kind = "int8" if quantized else "fp16"
    print(f"attention {kind}, {rows} rows at {context}: limit {least:.1f} us | {time:.1f} {cut_for(rows)}")


def main(
    rows: Annotated[str, typer.Option(help=f"Rows of the products, {FEW} at most.")] = "1,2,4",
    batches: Annotated[str, typer.Option(help="Rows of the attention.")] = "1,8,32,64,256",
    contexts: Annotated[str, typer.Option(help="Tokens that the attention looks at.")] = "512",
) -> None:
    """Time the kernels of a layer."""
    if not torch.cuda.is_available() or (reason := support.why_not(DEVICE)) is not None:
        raise typer.BadParameter(f"the kernels: {reason if torch.cuda.is_available() else 'no usable GPU'}")
    bandwidth = limits.read_bandwidth(DEVICE)
    print(f"{torch.cuda.get_device_name()}, reads {bandwidth / 1e12:.2f} TB/s")
    for name in SHAPES:
        for count in map(int, rows.split(",")):
            products(name, count, bandwidth)
    for quantized in (False, True):
        for context in map(int, contexts.split(",")):
            for count in map(int, batches.split(",")):
                attention(count, context, bandwidth, quantized=quantized)


if __name__ == "__main__":
    with torch.inference_mode():
        typer.run(main)

"""Each GPU kernel of a layer against the bytes that it must read.

    python bench/layers.py [--rows 1,8,32] [--contexts 512] [--search]

Times are of CUDA graph replays over many sets of weights or caches, 200 MB and more together, so that nothing is found
in the chip's cache. A product stands beside its error against fp32, of random weights of Qwen-1.8B's shapes, and beside
cuBLAS on the same weights in 16 bits, which does neither norm nor SiLU nor residual. With --search all of CANDIDATES
are tried, of which `worker.model.gpu.rows.TILES` has the fastest.
"""

import statistics
from collections.abc import Callable
from typing import Annotated

import limits
import torch
import torch.nn.functional as F
import typer

from worker.engine.gpu.attention import TritonPaged
from worker.engine.gpu.cuda_attention import CudaPaged
from worker.engine.kv_cache import KVCache
from worker.model.config import QwenConfig
from worker.model.gpu import support
from worker.model.gpu.linear import GpuLinear
from worker.model.gpu.rows import MOST, TILES, Int4Rows, Role, Stream, Tile
from worker.model.rope import rotation

SHAPES: dict[Role, tuple[int, int]] = {
    "c_attn": (2048, 6144),
    "attn_c_proj": (2048, 2048),
    "gate_up": (2048, 11008),
    "mlp_c_proj": (5504, 2048),
}
_WIDE = [(1, 8, 2), (1, 4, 4), (1, 16, 1), (2, 8, 2), (2, 8, 1), (2, 16, 1), (2, 4, 2), (2, 4, 1), (3, 16, 1)]
_WIDE += [(3, 8, 1), (3, 6, 1), (3, 4, 1), (4, 8, 1), (6, 8, 1)]
CANDIDATES: dict[Role, list[Tile]] = {
    "c_attn": [Tile(*one, 1) for one in _WIDE],
    "attn_c_proj": [Tile(1, 16, 1, 1), Tile(1, 8, 2, 1), Tile(2, 8, 1, 2), Tile(4, 4, 1, 4)],
    "gate_up": [Tile(*one, 1) for one in _WIDE],
    "mlp_c_proj": [
        Tile(1, 22, 2, 1),
        Tile(1, 15, 3, 1),
        Tile(1, 11, 4, 1),
        Tile(2, 11, 2, 2),
        Tile(2, 8, 1, 2),
    ],
}
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


def products(role: Role, rows: int, bandwidth: float, *, search: bool) -> float:
    """One kind of product with everything that is fused into it; microseconds of the tile in use."""
    inputs, outputs = SHAPES[role]
    sets = []
    for _ in range(int(200e6 // (inputs * outputs / 2)) + 1):
        words = torch.randint(-(2**31), 2**31, (outputs, inputs // 8), device=DEVICE, dtype=torch.int32)
        scales = (0.001 + 0.004 * torch.rand(outputs, inputs // 128, device=DEVICE)).half()
        sets.append(GpuLinear(words, scales, None, inputs, 128))
    exact, x = sets[0].dense().float().T, torch.randn(rows, inputs, device=DEVICE).half()
    hidden, gamma = torch.randn(rows, 2048, device=DEVICE), torch.rand(2048, device=DEVICE) + 0.5
    stream = Stream(hidden, (hidden * gamma / 16).half(), hidden.square().view(rows, -1, 16).sum(2))
    before, normed = hidden.clone(), role in ("c_attn", "gate_up")
    right = (F.rms_norm(hidden, (inputs,), gamma, 1e-6) if normed else x.float()) @ exact
    right = F.silu(right[:, 0::2]) * right[:, 1::2] if role == "gate_up" else right
    out = torch.zeros_like(right, dtype=torch.float16)

    def run(kernels: Int4Rows, one: GpuLinear) -> None:
        if normed:
            kernels.normed(role, one, stream, 1e-6, out)
        else:
            kernels.add(role, one, x, stream, gamma)

    most = next(most for most in TILES if rows <= most)
    used, found = TILES[most][role], list[tuple[float, Tile, float]]()
    for tile in dict.fromkeys([used, *(CANDIDATES[role] if search else ())]):
        kernels = Int4Rows({role: sets[0]}, {most: {role: tile}})
        hidden.copy_(before)
        try:
            run(kernels, sets[0])
        except RuntimeError:
            continue  # more shared memory or registers than a block has
        error = (((out.float() if normed else hidden - before) - right).norm() / right.norm()).item()
        time = microseconds(lambda kernels=kernels: [run(kernels, one) for one in sets], len(sets))
        found.append((time, tile, error))
    dense = [sets[0].dense() for _ in range(int(200e6 // (2 * inputs * outputs)) + 2)]
    plain = microseconds(lambda: [F.linear(x, one) for one in dense], len(dense))
    least = 1e6 * (inputs * outputs / 2 + inputs / 128 * outputs * 2) / bandwidth
    shown = "; ".join(f"{time:.2f} {tuple(tile)} {error:.0e}" for time, tile, error in sorted(found)[:5])
    print(f"{role}, {rows} rows: limit {least:.1f} us | {shown} | cuBLAS in 16 bits {plain:.2f}")
    return next(time for time, tile, _ in found if tile == used)


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
    qkv, layers = torch.randn(rows, 48, 128, device=DEVICE).half(), len(cache.layers)
    kernels = [TritonPaged()] if quantized else [CudaPaged(), TritonPaged()]
    times = [
        microseconds(
            lambda kernel=kernel: [
                kernel.decode(qkv, layer, cache, tables, positions, turns) for layer in range(layers)
            ],
            layers,
        )
        for kernel in kernels
    ]
    per_token = KVCache.bytes_per_token(CONFIG, torch.float16, quantized=quantized) / CONFIG.num_layers
    least = 1e6 * rows * context * per_token / bandwidth
    kind = "int8" if quantized else "fp16"
    shown = "; ".join(f"{kernel.name} {time:.1f}" for kernel, time in zip(kernels, times, strict=True))
    print(f"attention {kind}, {rows} rows at {context}: limit {least:.1f} us | {shown}")


def main(
    rows: Annotated[str, typer.Option(help=f"Rows of the products, {MOST} at most.")] = "1,2,4,8,16,24,32",
    batches: Annotated[str, typer.Option(help="Rows of the attention.")] = "1,8,32,64,256",
    contexts: Annotated[str, typer.Option(help="Tokens that the attention looks at.")] = "512",
    search: Annotated[bool, typer.Option(help="Try other tiles too.")] = False,
) -> None:
    """Time the kernels of a layer."""
    if not torch.cuda.is_available() or (reason := support.why_not_compiled(DEVICE)) is not None:
        raise typer.BadParameter(f"the kernels: {reason if torch.cuda.is_available() else 'no usable GPU'}")
    bandwidth = limits.read_bandwidth(DEVICE)
    print(f"{torch.cuda.get_device_name()}, reads {bandwidth / 1e12:.2f} TB/s")
    for count in map(int, rows.split(",")):
        times = [products(role, count, bandwidth, search=search) for role in SHAPES]
        print(f"a layer's four products, {count} rows: {sum(times):.1f} us")
    for quantized in (False, True):
        for context in map(int, contexts.split(",")):
            for count in map(int, batches.split(",")):
                attention(count, context, bandwidth, quantized=quantized)


if __name__ == "__main__":
    with torch.inference_mode():
        typer.run(main)

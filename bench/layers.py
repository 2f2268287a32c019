"""Each GPU kernel of a layer against the bytes that it must read.

    python bench/layers.py [--rows 1,8,32] [--contexts 512] [--prompts 4000+32] [--search]

Times are of CUDA graph replays over many sets of weights or caches, 200 MB and more together, so that nothing is found
in the chip's cache. A product stands beside its error against fp32, of random weights of Qwen-1.8B's shapes, and beside
cuBLAS on the same weights in 16 bits, which does neither norm nor SiLU nor residual. With --search all of CANDIDATES
are tried, of which `worker.model.gpu.rows.TILES` and `worker.model.gpu.wgmma.TILES` have the fastest: of the latter in
a chain of all four, since there a launch begins beside the one before it.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable
from typing import Annotated

import limits
import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from worker.engine.gpu.attention import TritonPaged
from worker.engine.gpu.cuda_attention import CudaPaged
from worker.engine.gpu.prompts import Pieces, cut, tile_for
from worker.engine.gpu.sampler import CudaSampler
from worker.engine.kv_cache import KVCache
from worker.engine.request import GenerationRequest, SamplingParams
from worker.engine.sequence import Sequence
from worker.engine.static_inputs import StaticInputs
from worker.model.config import QwenConfig
from worker.model.gpu import cuda, support, wgmma
from worker.model.gpu.linear import GpuLinear
from worker.model.gpu.plan import Role, Tile
from worker.model.gpu.rows import Int4Rows, RowsTile, Stream, tilings_for
from worker.model.gpu.stack import Int4Stack, StackLayer
from worker.model.gpu.wgmma import WgmmaTile
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
    "c_attn": [RowsTile(*one, 1) for one in _WIDE],
    "attn_c_proj": [RowsTile(1, 16, 1, 1), RowsTile(1, 8, 2, 1), RowsTile(2, 8, 1, 2), RowsTile(4, 4, 1, 4)],
    "gate_up": [RowsTile(*one, 1) for one in _WIDE],
    "mlp_c_proj": [
        RowsTile(1, 22, 2, 1),
        RowsTile(1, 15, 3, 1),
        RowsTile(1, 11, 4, 1),
        RowsTile(2, 11, 2, 2),
        RowsTile(2, 8, 1, 2),
    ],
}
_LIMITS = {16: 96, 32: 104, 48: 104, 64: 128}  # registers
_CLUSTERS = {"c_attn": (2, 4), "attn_c_proj": (4, 8), "gate_up": (2, 4), "mlp_c_proj": (4, 5, 6, 8)}
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


def candidates(role: Role, most: int, used: Tile) -> list[Tile]:
    """For up to `most` rows, of the kernel that serves them; the tile in use is the first."""
    if not isinstance(used, WgmmaTile):
        return [used, *CANDIDATES[role]]
    cuts = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3)]
    turns = [(1, 99), (2, 99), (3, 99), (1, 4), (1, 3), (2, 3)]
    every = itertools.product(cuts, turns, _CLUSTERS[role])
    return [used, *(WgmmaTile(*cut, *turn, cluster, _LIMITS[most]) for cut, turn, cluster in every)]


def layer_of(role: Role) -> GpuLinear:
    """Random weights."""
    inputs, outputs = SHAPES[role]
    words = torch.randint(-(2**31), 2**31, (outputs, inputs // 8), device=DEVICE, dtype=torch.int32)
    scales = (0.001 + 0.004 * torch.rand(outputs, inputs // 128, device=DEVICE)).half()
    return GpuLinear(words, scales, None, inputs, 128)


def products(role: Role, rows: int, bandwidth: float, *, search: bool) -> None:
    """One kind of product with everything that is fused into it."""
    inputs, outputs = SHAPES[role]
    sets = [layer_of(role) for _ in range(int(200e6 // (inputs * outputs / 2)) + 1)]
    exact, x = sets[0].dense().float().T, torch.randn(rows, inputs, device=DEVICE).half()
    hidden, gamma = torch.randn(rows, 2048, device=DEVICE), torch.rand(2048, device=DEVICE) + 0.5
    squares, scaled = hidden.square().view(rows, -1, 16).sum(2), (hidden * gamma / 16).half()
    before, normed = hidden.clone(), role in ("c_attn", "gate_up")
    right = (F.rms_norm(hidden, (inputs,), gamma, 1e-6) if normed else x.float()) @ exact
    right = F.silu(right[:, 0::2]) * right[:, 1::2] if role == "gate_up" else right
    out = torch.zeros_like(right, dtype=torch.float16)

    def run(kernels: Int4Rows, one: GpuLinear, placed: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        stream, into = Stream(hidden, placed(scaled), squares), placed(x) if role == "mlp_c_proj" else x
        if normed:
            return lambda: kernels.normed(role, one, stream, 1e-6, out)
        return lambda: kernels.add(role, one, into, stream, gamma)

    tilings = tilings_for(torch.cuda.get_device_capability(DEVICE), {role: sets[0]})
    most = next(most for most in tilings if rows <= most)
    found = list[tuple[float, Tile, float]]()
    used = tilings[most][role]
    for tile in dict.fromkeys(candidates(role, most, used) if search else [used]):
        try:
            kernels = Int4Rows({role: sets[0]}, {most: {role: tile}})
            placed = wgmma.rearranged if kernels.placed(rows) else torch.clone
            hidden.copy_(before)
            run(kernels, sets[0], placed)()
        except (cuda.CompileError, RuntimeError):
            continue  # more shared memory or registers than a block has
        got = out.float() if normed else hidden - before
        error = ((got - (placed(right) if role == "gate_up" else right)).norm() / right.norm()).item()
        launches = [run(kernels, one, placed) for one in sets]
        time = microseconds(lambda launches=launches: [launch() for launch in launches], len(sets))
        found.append((time, tile, error))
    dense = [sets[0].dense() for _ in range(int(200e6 // (2 * inputs * outputs)) + 2)]
    plain = microseconds(lambda: [F.linear(x, one) for one in dense], len(dense))
    least = 1e6 * (inputs * outputs / 2 + inputs / 128 * outputs * 2) / bandwidth
    shown = "; ".join(f"{time:.2f} {tuple(tile)} {error:.0e}" for time, tile, error in sorted(found)[:5])
    print(f"{role}, {rows} rows: limit {least:.1f} us | {shown} | cuBLAS in 16 bits {plain:.2f}")


def chain(rows: int, layers: int = 24) -> None:
    """The four products of some layers after each other, without attention."""
    made = [{role: layer_of(role) for role in SHAPES} for _ in range(layers)]
    kernels = Int4Rows(made[0])
    stream, gamma = Stream.empty(rows, 2048, DEVICE), torch.ones(2048, device=DEVICE)
    for part in stream:
        part.fill_(0.5)
    qkv, mixed, inner = (
        torch.full((rows, width), 0.5, dtype=torch.float16, device=DEVICE) for width in (6144, 2048, 5504)
    )

    def run() -> None:
        for layer in made:
            kernels.normed("c_attn", layer["c_attn"], stream, 1e-6, qkv)
            kernels.add("attn_c_proj", layer["attn_c_proj"], mixed, stream, gamma)
            kernels.normed("gate_up", layer["gate_up"], stream, 1e-6, inner)
            kernels.add("mlp_c_proj", layer["mlp_c_proj"], inner, stream, gamma)

    print(
        f"a layer's four products in a chain of {layers} layers, {rows} rows: {microseconds(run, layers):.1f} us"
    )


def one_row(context: int, count: int = 24) -> None:
    """All layers of one row behind so many tokens, attention included: five launches a layer beside one for all."""
    norms = [torch.rand(2048, device=DEVICE) + 0.5 for _ in range(2 * count)]
    layers = [
        StackLayer(before, {role: layer_of(role) for role in SHAPES}, behind)
        for before, behind in zip(norms[::2], norms[1::2], strict=True)
    ]
    for layer in layers:
        bias = torch.randn(6144, device=DEVICE).half() / 4
        layer.roles["c_attn"] = dataclasses.replace(layer.roles["c_attn"], bias=bias)
    wte, blocks = torch.randn(1000, 2048, device=DEVICE).half(), context // 16 + 1
    if (reason := Int4Stack.why_not(layers, wte)) is not None:
        print(f"one launch for all layers {reason}")
        return
    how = {"blocks": blocks, "block_size": 16, "dtype": torch.float16, "device": DEVICE}
    cache = KVCache(CONFIG, **how, quantized=False)
    for stored in cache.layers:
        stored.normal_()
    table = torch.randperm(blocks, device=DEVICE)[None].to(torch.int32)
    position, token = torch.tensor([context], device=DEVICE), torch.tensor([7], device=DEVICE)
    turns = rotation(8192, 128, 10000.0, DEVICE).at(position)
    stack, kernels, attend = Int4Stack(layers, wte, eps=1e-6), Int4Rows(layers[0].roles), CudaPaged()
    begun = wte[token].float()
    scaled = (begun * layers[0].ln_1 / 16).half()

    def many() -> Tensor:
        stream = Stream(begun.clone(), scaled.clone(), begun.square().view(1, -1, 16).sum(2))
        for index, layer in enumerate(layers):
            qkv, inner = (torch.empty(1, width, dtype=torch.float16, device=DEVICE) for width in (6144, 5504))
            kernels.normed("c_attn", layer.roles["c_attn"], stream, 1e-6, qkv)
            mixed = attend.decode(qkv.view(1, 48, 128), index, cache, table, position, turns).flatten(1)
            kernels.add("attn_c_proj", layer.roles["attn_c_proj"], mixed, stream, layer.ln_2)
            kernels.normed("gate_up", layer.roles["gate_up"], stream, 1e-6, inner)
            following = layers[index + 1].ln_1 if index + 1 < count else None
            kernels.add("mlp_c_proj", layer.roles["mlp_c_proj"], inner, stream, following)
        return stream.hidden

    def one() -> Tensor:
        return stack(token, cache.layers, table, position, turns)

    right = many()
    error = ((one() - right).norm() / right.norm()).item()
    times = [microseconds(run, 1) for run in (many, one)]
    print(
        f"all layers of a row at {context}: {times[0]:.0f} us in five launches a layer, {times[1]:.0f} in one"
    )
    print(f"their results are {error:.0e} apart")


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
    kernels = [CudaPaged(), TritonPaged()]
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


def prompt(before: int, new: int) -> None:
    """One layer's attention of a piece of a prompt, its keys and values kept first."""
    blocks, positions = -(-(before + new) // 16), torch.arange(before, before + new, device=DEVICE)
    config = CONFIG.model_copy(update={"num_layers": max(1, int(200e6 // (blocks * 16 * 8192)))})
    how = {"blocks": blocks, "block_size": 16, "dtype": torch.float16, "device": DEVICE}
    cache = KVCache(config, **how, quantized=False)
    for stored in cache.layers:
        stored.normal_()
    tables = torch.randperm(blocks, device=DEVICE).to(torch.int32)[None]
    tile = tile_for(new)
    items = torch.from_numpy(cut(np.array([[0, new, before, 0]]), tile)).to(DEVICE)
    slots = tables[0][positions // 16] * 16 + positions % 16
    pieces, turns = Pieces(slots, tables, items, tile), rotation(8192, 128, 10000.0, DEVICE).at(positions)
    qkv, backend, layers = torch.randn(new, 48, 128, device=DEVICE).half(), TritonPaged(), len(cache.layers)
    time = microseconds(
        lambda: [backend.pieces(qkv, layer, cache, pieces, turns) for layer in range(layers)], layers
    )
    operations = 4 * 16 * 128 * (new * before + new * new / 2)
    print(f"attention of {new} tokens behind {before}: {time:.1f} us, {operations / time / 1e6:.0f} TFLOP/s")


def sampler(rows: int, bandwidth: float) -> None:
    """Tokens of so many rows of logits: flat ones, as random weights give them, and such as a language model gives."""
    flat = torch.randn(rows, CONFIG.vocab_size, device=DEVICE).half()
    steep, top_p = 4 * flat, {"top_p": 0.8, "repetition_penalty": 1.1}
    kinds = {
        "greedy": (flat, {"temperature": 0.0}),
        "all, flat": (flat, {}),
        "top-p, flat": (flat, top_p),
        "all": (steep, {}),
        "top-p": (steep, top_p),
        "top-k": (steep, {"top_k": 50}),
    }
    tokens, times = torch.zeros(rows, dtype=torch.int64, device=DEVICE), list[str]()
    for name, (logits, changed) in kinds.items():
        inputs = StaticInputs(rows, 1, DEVICE)
        choose = CudaSampler(inputs, n_vocab=151_851, columns=CONFIG.vocab_size, dtype=logits.dtype)
        how = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0} | changed
        for row in range(rows):
            params = SamplingParams(**how, seed=row, max_new_tokens=9, stop_token_ids=(), stop_strings=())
            request = GenerationRequest("", (1, 2, 3), (), params, None)
            choose.prepare(row, Sequence(request, token_bytes=lambda _: b"a", capacity=9))
        inputs.upload(rows, tables=True)
        time = microseconds(lambda logits=logits, choose=choose: choose.choose(logits, tokens), 1)
        times.append(f"{name} {time:.1f}")
    least = 1e6 * rows * CONFIG.vocab_size * 2 / bandwidth
    print(f"sampler, {rows} rows: one reading of all logits {least:.1f} us | {'; '.join(times)}")


def main(
    rows: Annotated[str, typer.Option(help="Rows of the products.")] = "1,2,4,8,16,32,48,64",
    batches: Annotated[str, typer.Option(help="Rows of the attention and of the sampler.")] = "1,8,32,64,256",
    contexts: Annotated[str, typer.Option(help="Tokens that the attention looks at.")] = "512",
    prompts: Annotated[
        str, typer.Option(help="Pieces of prompts: tokens before + new ones.")
    ] = "0+512,4000+32,4000+256,2048+1024",
    search: Annotated[bool, typer.Option(help="Try other tiles too.")] = False,
) -> None:
    """Time the kernels of a layer."""
    if not torch.cuda.is_available() or (reason := support.why_not_compiled(DEVICE)) is not None:
        raise typer.BadParameter(f"the kernels: {reason if torch.cuda.is_available() else 'no usable GPU'}")
    bandwidth = limits.read_bandwidth(DEVICE)
    print(f"{torch.cuda.get_device_name()}, reads {bandwidth / 1e12:.2f} TB/s")
    for count in map(int, rows.split(",")):
        for role in SHAPES:
            products(role, count, bandwidth, search=search)
        chain(count)
    for context in map(int, contexts.split(",")):
        one_row(context)
    for quantized in (False, True):
        for context in map(int, contexts.split(",")):
            for count in map(int, batches.split(",")):
                attention(count, context, bandwidth, quantized=quantized)
    for count in map(int, batches.split(",")):
        sampler(count, bandwidth)
    for piece in prompts.split(","):
        prompt(*map(int, piece.split("+")))


if __name__ == "__main__":
    with torch.inference_mode():
        typer.run(main)

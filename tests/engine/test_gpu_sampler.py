"""The GPU's sampler against the one that everything else uses."""

import ctypes
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.answers import ask
from worker.engine.gpu import sampler as ours
from worker.engine.sampler import NonFiniteLogits, Row, sample
from worker.engine.sequence import Sequence
from worker.engine.static_inputs import StaticInputs
from worker.model.gpu import cuda

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = cuda.why_not() if DEVICE.type == "cuda" else "it is no NVIDIA GPU"
on_gpu = pytest.mark.skipif(REASON is not None, reason=f"the kernels cannot run here: {REASON}")
COLUMNS, N_VOCAB = 20_480, 20_001  # five blocks
KINDS: tuple[dict[str, float], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.8},
    {"temperature": 1.2, "top_k": 20},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "top_p": 0.5, "repetition_penalty": 1.1},
    {"temperature": 1e-20, "top_p": 0.9},
    {"temperature": 1e20, "top_p": 0.5},
    {"temperature": 0.02, "top_k": 400},
    {"temperature": 3.0, "top_k": 3000, "top_p": 0.7},
    {"temperature": 1.5, "top_p": 0.999},
    {"temperature": 1.0, "top_k": 30_000, "top_p": 0.3},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-50},
    {"temperature": 1.0, "top_k": 9, "top_p": 1e-300, "repetition_penalty": 0.5},
)


def test_sizes_are_those_of_the_kernels() -> None:
    header = Path(ours.__file__).with_name("sampling.cuh").read_text()
    found = dict(re.findall(r"\b(THREADS|BINS|LISTED|IDS) = (\d+)", header))
    assert found == {
        "THREADS": str(ours.THREADS),
        "IDS": str(ours.BLOCK // ours.THREADS),
        "BINS": str(ours.BINS),
        "LISTED": str(ours.LISTED),
    }
    assert ctypes.sizeof(ours._Tally) == 45_104  # which the header asserts by parts


def _logits(shape: str, rows: int, draw: torch.Generator) -> Tensor:
    noise = torch.randn(rows, COLUMNS, generator=draw)
    if shape == "steep":
        return 8 * noise
    if shape == "flat":  # thousands of equal scores
        return (3 * noise).round() / 64
    return 3 * noise if shape == "usual" else torch.zeros(rows, COLUMNS)  # more than are listed at an edge


def _chosen(logits: Tensor, sequences: list[Sequence], n_vocab: int = N_VOCAB) -> list[int]:
    inputs = StaticInputs(len(sequences), 8, DEVICE)
    sampler = ours.CudaSampler(inputs, n_vocab=n_vocab, columns=logits.shape[1], dtype=logits.dtype)
    for index, sequence in enumerate(sequences):
        sampler.prepare(index, sequence)
    inputs.upload(len(sequences), tables=True)
    tokens = torch.full((len(sequences),), -2, device=DEVICE)
    sampler.observe(torch.tensor([sequence.ids[-1] for sequence in sequences], device=DEVICE))
    sampler.choose(logits, tokens)
    return tokens.tolist()


def _sequences(seed: int, logits: Tensor, draw: torch.Generator, n_vocab: int = N_VOCAB) -> list[Sequence]:
    sequences = []
    for index, kind in enumerate(KINDS):
        ids = torch.randint(0, n_vocab, (40,), generator=draw).tolist()
        ids += logits[index, :n_vocab].topk(3).indices.tolist()
        request = ask(prompt=ids, seed=seed * 100 + index, **kind)
        sequences.append(Sequence(request, token_bytes=lambda _: b"a", capacity=100))
    return sequences


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
@pytest.mark.parametrize("shape", ["usual", "steep", "flat", "equal"])
@pytest.mark.parametrize("seed", range(5))
def test_the_same_tokens(seed: int, shape: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = _logits(shape, len(KINDS), draw).to(dtype).to(DEVICE)
    sequences = _sequences(seed, logits, draw)
    if seed == 4:
        logits[0, 7], logits[3, 9], logits[4, 20_000] = torch.nan, torch.inf, -torch.inf
    rows = [Row(one.request.sampling, 0, torch.tensor(one.ids, device=DEVICE)) for one in sequences]
    right = sample(logits.float(), rows, n_vocab=N_VOCAB)
    assert _chosen(logits, sequences) == [-1 if isinstance(one, NonFiniteLogits) else one for one in right]


@on_gpu
@pytest.mark.parametrize("n_vocab", [3, 8, 300, 4096])
@pytest.mark.parametrize("more", [0, 1, 8])
def test_small_vocabularies(n_vocab: int, more: int) -> None:
    draw = torch.Generator().manual_seed(n_vocab)
    logits = (3 * torch.randn(len(KINDS), n_vocab + more, generator=draw)).half().to(DEVICE)
    sequences = _sequences(7, logits, draw, n_vocab)
    rows = [Row(one.request.sampling, 0, torch.tensor(one.ids, device=DEVICE)) for one in sequences]
    assert _chosen(logits, sequences, n_vocab) == sample(logits.float(), rows, n_vocab=n_vocab)


@on_gpu
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    draw = torch.Generator().manual_seed(1)
    logits = _logits("flat", len(KINDS), draw).half().to(DEVICE)
    sequences = _sequences(1, logits, draw)
    together = _chosen(logits, sequences)
    assert together == _chosen(logits.flip(0), sequences[::-1])[::-1]
    assert together == [_chosen(logits[row : row + 1], [one])[0] for row, one in enumerate(sequences)]


@on_gpu
def test_draws_are_distributed_as_the_scores_say() -> None:
    """Of four tokens with known chances top-p 0.9 leaves three; 20,000 draws of seeds that follow each other."""
    draws, chances = 20_000, torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = torch.full((64, COLUMNS), -20.0)
    logits[:, [7, 5_000, 12_000, 20_000]] = chances.log()
    counts = Counter[int]()
    inputs = StaticInputs(64, 8, DEVICE)
    sampler = ours.CudaSampler(inputs, n_vocab=N_VOCAB, columns=COLUMNS, dtype=torch.float16)
    tokens = torch.zeros(64, dtype=torch.int64, device=DEVICE)
    on_device = logits.half().to(DEVICE)
    for first in range(0, draws, 64):
        for row in range(64):
            request = ask(prompt=[1], seed=first + row, temperature=1.0, top_p=0.9)
            sampler.prepare(row, Sequence(request, token_bytes=lambda _: b"a", capacity=9))
        inputs.upload(64, tables=False)
        sampler.choose(on_device, tokens)
        counts.update(tokens.tolist())
    assert set(counts) == {7, 5_000, 12_000}
    total = counts.total()
    for token, chance in ((7, 0.5), (5_000, 0.3), (12_000, 0.15)):
        expected = chance / 0.95
        assert abs(counts[token] / total - expected) < 5 * (expected * (1 - expected) / total) ** 0.5

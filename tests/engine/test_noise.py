"""The noise: the published generator, and noise that a statistician finds nothing wrong with.

Seeds are fixed, so these tests always see the same numbers. A statistic of `df` degrees of freedom has mean df and
variance 2 df; five standard deviations leave room for none of the defects looked for (a repeated stream, a
constant bit, neighbours that move together), which give hundreds.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worker.engine import noise
from worker.engine.noise import gumbel

IDS = torch.arange(100_000)
MASK = (1 << 64) - 1


def uniform(values: Tensor) -> Tensor:
    """Gumbel noise through its distribution function: uniform on (0, 1)."""
    return torch.exp(-torch.exp(-values))


def deviations(counts: Tensor, expected: Tensor) -> float:
    """The chi-square statistic, in standard deviations from its mean."""
    df = counts.numel() - 1
    return float((((counts - expected) ** 2 / expected).sum() - df) / math.sqrt(2 * df))


ONE = torch.tensor([7])
# The three ways to walk through the noise, and far corners of each.
STREAMS: dict[str, Callable[[], Tensor]] = {
    "token ids": lambda: gumbel(1, 0, IDS),
    "token ids, largest seed and position": lambda: gumbel(MASK, 8191, IDS),
    "positions": lambda: torch.cat([gumbel(1, position, ONE) for position in range(20_000)]),
    "seeds": lambda: torch.cat([gumbel(seed, 0, ONE) for seed in range(20_000)]),
    "negative seeds": lambda: torch.cat([gumbel(-seed, 5, ONE) for seed in range(1, 20_001)]),
}


@pytest.mark.parametrize("name", STREAMS)
def test_uniform_and_without_memory(name: str) -> None:
    values = uniform(STREAMS[name]())
    for cells in (2, 64, 257):
        counts = torch.bincount((values * cells).long(), minlength=cells).double()
        assert abs(deviations(counts, torch.full_like(counts, len(values) / cells))) < 5
    for lag in (1, 2, 64):
        pairs = (values[:-lag] * 16).long() * 16 + (values[lag:] * 16).long()
        counts = torch.bincount(pairs, minlength=256).double()
        assert abs(deviations(counts, torch.full_like(counts, len(pairs) / 256))) < 5


def test_streams_of_neighbouring_seeds_and_positions_are_unrelated() -> None:
    for other in (gumbel(2, 0, IDS), gumbel(1, 1, IDS), gumbel(0, 1, IDS), gumbel(-1, 0, IDS)):
        correlation = float(torch.corrcoef(torch.stack([uniform(gumbel(1, 0, IDS)), uniform(other)]))[0, 1])
        assert abs(correlation) < 5 / math.sqrt(len(IDS))


def splitmix64(state: int) -> int:
    """The generator as its authors wrote it in Java, on Python's unbounded integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_generator_is_the_published_one() -> None:
    # The first outputs for the seed 1234567, as printed with the reference implementations.
    gamma = 0x9E3779B97F4A7C15
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix64(1234567 + n * gamma & MASK) for n in range(4)] == outputs
    assert noise._mix(1234567) == outputs[0]


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (1, 3), (-5, 8191), (2**63, 17), (MASK, 1)])
def test_tensors_and_plain_integers_agree(seed: int, position: int) -> None:
    ids = [0, 1, 2, 49_363, 151_850]
    key = splitmix64(splitmix64(seed & MASK) + position & MASK)
    hashed = [splitmix64(key + token_id * 0x9E3779B97F4A7C15 & MASK) for token_id in ids]
    expected = [-math.log(-math.log(((h >> 12) + 0.5) / 2**52)) for h in hashed]
    torch.testing.assert_close(
        gumbel(seed, position, torch.tensor(ids)),
        torch.tensor(expected, dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )


def test_seeds_count_modulo_two_to_the_64() -> None:
    assert torch.equal(gumbel(-1, 0, IDS[:9]), gumbel(MASK, 0, IDS[:9]))
    assert torch.equal(gumbel(2**64 + 3, 0, IDS[:9]), gumbel(3, 0, IDS[:9]))
    assert not torch.equal(gumbel(3, 0, IDS[:9]), gumbel(4, 0, IDS[:9]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_makes_the_same_noise() -> None:
    # The integers are exact; CUDA's logarithm may differ from the host's in its last bit.
    for seed in range(20):
        torch.testing.assert_close(
            gumbel(seed, seed, IDS.cuda()).cpu(), gumbel(seed, seed, IDS), rtol=1e-14, atol=1e-15
        )

"""The candidates of the C++ kernels against torch's, which tests/engine/test_sampler.py judges by transformers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.test_sampler import params
from worker.engine import cpu_sampler
from worker.engine.request import SamplingParams
from worker.engine.sampler import candidates_of
from worker.model.cpu import library

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))

HOWS = st.builds(
    params,
    temperature=st.sampled_from([1e-300, 1e-6, 0.3, 1.0, 2.5, 1e300]),
    top_p=st.sampled_from([1e-6, 0.01, 0.5, 0.8, 0.99, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 700, 10**6]),
)


def made(seed: int, size: int, spread: float, levels: int, hidden: float) -> Tensor:
    """Scores of a few levels, so that many are equal, of which a part may not be chosen."""
    draw = torch.Generator().manual_seed(seed)
    scores = (torch.randn(2, size, generator=draw) * levels).round() / levels * spread
    scores[torch.rand(2, size, generator=draw) < hidden] = -torch.inf
    scores[:, seed % size] = spread  # something is left
    return scores


def best_first(ids: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """As torch gives them, the lower id first of two equal ones."""
    by_id = ids.argsort()
    order = by_id[logs[by_id].argsort(descending=True, stable=True)]
    return ids[order], logs[order]


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 5, 16, 333, 1024, 5000]),
    spread=st.sampled_from([0.05, 1.0, 8.0, 300.0]),
    levels=st.sampled_from([1, 20, 10_000]),
    hidden=st.sampled_from([0.0, 0.5, 0.999]),
    hows=st.tuples(HOWS, HOWS),
)
def test_they_are_those_of_the_whole_vocabulary_sorted(
    seed: int,
    size: int,
    spread: float,
    levels: int,
    hidden: float,
    hows: tuple[SamplingParams, SamplingParams],
) -> None:
    scores = made(seed, size, spread, levels, hidden)
    found = cpu_sampler.candidates(scores, hows)
    try:
        library.use("avx2")
        again = cpu_sampler.candidates(scores, hows)
    finally:
        library.use()
    for row, (mine, same) in enumerate(zip(found, again, strict=True)):
        assert (mine is None) == (same is None)
        if mine is None or same is None:
            assert hows[row].temperature < 1e-5  # whose bands hardly grow: torch takes over
            continue
        assert torch.equal(mine[0], same[0])
        assert torch.equal(mine[1], same[1])
        mine, ((ids, logs),) = best_first(*mine), candidates_of(scores[row : row + 1], [hows[row]], size)
        # The sum of all is rounded otherwise: at the edge of top-p there may be one more or less, of hardly any weight.
        shared = min(len(ids), len(mine[0]))
        assert torch.equal(mine[0][:shared], ids[:shared])
        assert torch.equal(mine[1][:shared], logs[:shared])
        whole = scores[row].double().sub(float(scores[row].max())).div(hows[row].temperature).exp().sum()
        beyond = torch.cat([ids[shared:], mine[0][shared:]])
        if len(beyond):
            before = float(logs[:shared].exp().sum() / whole)
            assert abs(before - hows[row].top_p) < 1e-5


@pytest.mark.parametrize(
    "how",
    [params(top_p=0.8), params(top_p=0.95, temperature=0.7), params(top_k=50), params(top_k=500, top_p=0.9)],
    ids=lambda how: f"T {how.temperature} k {how.top_k} p {how.top_p}",
)
def test_a_models_scores_are_settled_by_the_kernels(how: SamplingParams) -> None:
    """As many and as peaked as those of Qwen: a few hundred tokens within ten of the best."""
    draw = torch.Generator().manual_seed(9)
    scores = torch.randn(3, 151_936, generator=draw) * 2
    scores[:, :300] += torch.linspace(14, 4, 300)
    for row, mine in enumerate(cpu_sampler.candidates(scores, [how] * 3)):
        assert mine is not None
        ((ids, logs),) = candidates_of(scores[row : row + 1], [how])
        in_order = best_first(*mine)
        assert torch.equal(in_order[0], ids)
        assert torch.equal(in_order[1], logs)


def test_all_of_equal_scores_are_drawn_from() -> None:
    scores = torch.zeros(2, 5000)
    scores[1, 7] = 20
    flat, peaked = cpu_sampler.candidates(scores, [params(top_p=0.9)] * 2)
    assert flat is not None
    assert flat[0].tolist() == list(range(4500))
    assert peaked is not None
    assert peaked[0].tolist() == [7]

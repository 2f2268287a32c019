"""The choice of a token: transformers' order and rules, the seed's noise, and bad logits."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from worker.engine.request import SamplingParams
from worker.engine.sampler import NonFiniteLogits, Row, candidates, candidates_of, penalize, sample

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "qwen-golden-tokens.json").read_text())["sampling"]
LOGITS = torch.tensor(GOLDEN["vocab8_logits"])
CONTEXT = torch.tensor(GOLDEN["context_ids"])
NOTHING = torch.tensor([], dtype=torch.int64)


def params(
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
) -> SamplingParams:
    return SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_new_tokens=1,
        stop_token_ids=(),
        stop_strings=(),
    )


def one(logits: Tensor, context: Tensor, how: SamplingParams, *, position: int, n_vocab: int) -> int:
    """The token of a single row."""
    (token,) = sample(logits[None], [Row(how, position, context)], n_vocab=n_vocab)
    if isinstance(token, NonFiniteLogits):
        raise token
    assert isinstance(token, int)
    return token


def punish(scores: Tensor, context: Tensor, penalty: float) -> Tensor:
    return penalize(scores[None], [Row(params(repetition_penalty=penalty), 0, context)])[0]


def probabilities(scores: Tensor, how: SamplingParams) -> Tensor:
    """What a token is drawn with, over the whole vocabulary."""
    ((token_ids, kept),) = candidates(scores[None], [how])
    return torch.zeros(len(scores), dtype=torch.float64).index_put((token_ids,), kept.softmax(0))


def test_golden_example() -> None:
    penalized = punish(LOGITS, CONTEXT, 1.1)
    assert penalized.tolist() == pytest.approx(GOLDEN["after_repetition_penalty"], abs=1e-6)
    ((token_ids, _),) = candidates(penalized[None], [params(top_p=0.8)])
    assert sorted(token_ids.tolist()) == GOLDEN["kept_by_top_p_0.8"]
    assert probabilities(penalized, params(top_p=0.8)).tolist() == pytest.approx(GOLDEN["probs"], abs=1e-6)


@pytest.mark.parametrize("size", [50, 5_000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "penalty"),
    [(1.0, 0, 0.8, 1.1), (0.3, 0, 0.99, 1.0), (2.5, 40, 1.0, 1.3), (0.7, 20, 0.5, 0.9), (1.0, 1, 0.01, 1.0)],
)
def test_probabilities_equal_transformers(
    size: int, spread: float, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    """At spread 0.1 top-p keeps most of 5,000 tokens, at 8 a handful: both of its ways are taken."""
    logits = torch.randn(size, generator=torch.Generator().manual_seed(1)) * spread
    context = torch.tensor([3, 3, 8, 20])
    theirs = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)]
    )
    if top_k:
        theirs.append(TopKLogitsWarper(top_k))
    theirs.append(TopPLogitsWarper(top_p))
    expected = theirs(context[None], logits[None].double())[0].softmax(0)
    ours = probabilities(punish(logits, context, penalty), params(temperature, top_p, top_k))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-9)


def test_frequencies_are_the_probabilities() -> None:
    how = params(top_p=0.8, repetition_penalty=1.1, seed=11)
    draws = 20_000
    drawn = torch.tensor([one(LOGITS, CONTEXT, how, position=n, n_vocab=8) for n in range(draws)])
    counts = torch.bincount(drawn, minlength=8)
    expected = torch.tensor(GOLDEN["probs"]) * draws
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < 2 + 5 * math.sqrt(2 * 2)  # 3 tokens: mean 2, variance 4


def test_same_seed_and_position_same_token_whatever_came_before() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    drawn = [one(logits, NOTHING, params(seed=5), position=n, n_vocab=1000) for n in range(50)]
    again = [one(logits, NOTHING, params(seed=5), position=n, n_vocab=1000) for n in reversed(range(50))]
    other = [one(logits, NOTHING, params(seed=6), position=n, n_vocab=1000) for n in range(50)]
    assert drawn == again[::-1]
    assert len(set(drawn)) > 30
    assert sum(a == b for a, b in zip(drawn, other, strict=True)) < 5


def test_temperature_zero_takes_the_greatest_and_of_equals_the_first() -> None:
    logits = torch.tensor([0.0, 7.0, 7.0, -1.0])
    assert {one(logits, NOTHING, params(temperature=0, seed=s), position=s, n_vocab=4) for s in range(9)} == {
        1
    }
    punished = params(temperature=0, repetition_penalty=1.1)
    assert one(logits, torch.tensor([1]), punished, position=0, n_vocab=4) == 2


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-6, 1.0, 1e300])
def test_padding_rows_are_never_chosen_and_no_temperature_breaks_the_arithmetic(temperature: float) -> None:
    logits = torch.tensor([1.0, 2.0, 50.0, float("nan")])
    how = params(temperature, top_p=0.9)
    drawn = {one(logits, NOTHING, how, position=n, n_vocab=2) for n in range(200)}
    assert drawn == ({0, 1} if temperature >= 1 else {1})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(NonFiniteLogits, match="not finite"):
        one(torch.tensor([1.0, bad]), NOTHING, params(), position=0, n_vocab=2)


HOWS = (
    params(temperature=0),
    params(temperature=0, repetition_penalty=1.3),
    params(temperature=1.2, seed=3),
    params(temperature=0.8, top_p=0.8, repetition_penalty=1.1, seed=4),
    params(temperature=2.0, top_k=40, seed=5),
    params(temperature=1.0, top_k=3000, top_p=0.99, seed=6),
    params(temperature=9.0, top_p=0.999, seed=7),  # keeps nearly all: more than are looked at first
)


def test_rows_are_chosen_together_as_they_are_alone() -> None:
    """Every kind of sampling in one batch, with one row that is broken."""
    draw = torch.Generator().manual_seed(8)
    logits = torch.randn(len(HOWS) + 1, 5000, generator=draw) * 3
    logits[-1, 77] = torch.nan
    rows = [Row(how, n, torch.arange(n, 9 * n)) for n, how in enumerate((*HOWS, HOWS[3]))]
    together = sample(logits, rows, n_vocab=4990)
    alone = [sample(logits[n : n + 1], [row], n_vocab=4990)[0] for n, row in enumerate(rows)]
    assert together[:-1] == alone[:-1]
    assert isinstance(together[-1], NonFiniteLogits)


@pytest.mark.parametrize(
    "how",
    # The last takes a part of more than are looked at first.
    [*HOWS[3:], params(temperature=3.0, top_k=2500, top_p=0.7)],
    ids=lambda how: f"T {how.temperature} k {how.top_k} p {how.top_p}",
)
@pytest.mark.parametrize("levels", [3, 40, 100_000])
def test_looking_at_the_best_alone_changes_nothing(how: SamplingParams, levels: int) -> None:
    """Logits of few levels have many equals at every edge; the whole vocabulary sorted is the yardstick."""
    draw = torch.Generator().manual_seed(levels)
    scores = (torch.randn(4, 3000, generator=draw).mul(3).clamp(-9, 9) * levels / 18).round() / levels * 18
    for looked_at in (1, 50, 1024):
        for ours, exact in zip(
            candidates_of(scores, [how] * 4, looked_at), candidates_of(scores, [how] * 4, 3000), strict=True
        ):
            assert torch.equal(ours[0], exact[0])
            assert torch.equal(ours[1], exact[1])

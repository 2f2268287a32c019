"""From logits to next tokens, all rows at once: a pure function, so an answer can be generated again to the letter.

The order is the one Qwen's own chat uses (transformers' logits processors): repetition penalty, temperature,
top-k, top-p; then one draw. Presence and frequency penalty and `logit_bias` stand between the first two. The draw is
Gumbel-max: the candidate with the greatest log-probability plus noise, which is distributed as the softmax of the
candidates.

Top-p hardly ever keeps more than a few hundred of 150,000 tokens, so the best thousand of each row are looked at
first, and the whole vocabulary only of a row where they do not settle it. On a CPU C++ kernels do without sorting.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine import cpu_sampler
from worker.engine.noise import gumbel
from worker.engine.request import SamplingParams, TokenLogprobs
from worker.engine.scores import score

_PREFILTER = 1024


class NonFiniteLogits(ArithmeticError):
    """The model's output holds NaN or infinity, so no token can be chosen."""


@dataclass(frozen=True, slots=True)
class Row:
    """How the token of one row is chosen: at `position` (from 0) of its answer, behind `context_ids`.

    context_ids  int64, prompt and answer so far, each id at least once; it may be empty without a repetition penalty.
    answer_ids   int64, the answer so far; None where neither presence nor frequency penalty needs it.
    allowed      `[n_vocab]` of bools: nothing else is chosen; None allows all.
    """

    params: SamplingParams
    position: int
    context_ids: Tensor
    answer_ids: Tensor | None = None
    allowed: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with its log-probabilities, for a request that asks for them."""

    token_id: int
    logprobs: TokenLogprobs | None


# A row's next token, or why there is none.
Choice = int | Scored | NonFiniteLogits


def sample(logits: Tensor, rows: Sequence[Row], *, n_vocab: int) -> list[Choice]:
    """The next token of each row, or why there is none; one row's bad logits do not touch the others.

    `logits`: `[rows, rows of the head]`, fp32; columns from `n_vocab` on are padding and are never chosen. `Scored`
    for the rows that ask for log-probabilities, the bare id for all others.
    """
    chosen: list[Choice] = []
    for index, token in enumerate(_choose(logits, rows, n_vocab=n_vocab)):
        count = rows[index].params.logprobs
        if count is None or isinstance(token, NonFiniteLogits):
            chosen.append(token)
        else:
            (logprobs,) = score(logits[index : index + 1], [token], count, n_vocab=n_vocab)
            chosen.append(Scored(token, logprobs))
    return chosen


def _choose(logits: Tensor, rows: Sequence[Row], *, n_vocab: int) -> list[int | NonFiniteLogits]:
    scores = logits[:, :n_vocab]
    least, greatest = torch.aminmax(scores, dim=1)
    finite = (least.isfinite() & greatest.isfinite()).tolist()
    scores = constrain(adjust(penalize(scores, rows), rows), rows)
    chosen: list[int | NonFiniteLogits] = [0] * len(rows)
    greedy, filtered = [], []
    for index, row in enumerate(rows):
        if not finite[index]:
            chosen[index] = NonFiniteLogits("the model produced logits that are not finite")
        elif row.params.temperature == 0:
            greedy.append(index)
        elif row.params.top_k or row.params.top_p < 1:
            filtered.append(index)
        else:
            whole = (scores[index].double() - scores[index].max()) / row.params.temperature
            chosen[index] = _draw(torch.arange(n_vocab, device=scores.device), whole, row)
    for index, token in zip(greedy, _some(scores, greedy).argmax(1).tolist(), strict=True):
        chosen[index] = token
    if filtered:
        kept = candidates(_some(scores, filtered), [rows[index].params for index in filtered])
        for index, (token_ids, log_probabilities) in zip(filtered, kept, strict=True):
            chosen[index] = _draw(token_ids, log_probabilities, rows[index])
    return chosen


def _some(scores: Tensor, rows: list[int]) -> Tensor:
    """Some of the rows, in growing order; all of them without a copy."""
    return scores if len(rows) == len(scores) else scores[rows]


def constrain(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Nothing that a row does not allow can be chosen."""
    if all(row.allowed is None for row in rows):
        return scores
    scores = scores.clone()
    for index, row in enumerate(rows):
        if row.allowed is not None:
            scores[index].masked_fill_(~row.allowed, -torch.inf)
    return scores


def penalize(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Repetition penalty (Keskar et al. 2019): for each id in the context, once, however often it occurs."""
    punished = [
        index for index, row in enumerate(rows) if row.params.repetition_penalty != 1 and len(row.context_ids)
    ]
    if not punished:
        return scores
    contexts = [rows[index].context_ids for index in punished]
    lengths = torch.tensor([len(context) for context in contexts])
    where = (torch.tensor(punished).repeat_interleave(lengths).to(scores.device), torch.cat(contexts))
    penalties = torch.tensor([rows[index].params.repetition_penalty for index in punished])
    penalty = penalties.repeat_interleave(lengths).to(scores.device)
    seen = scores[where]
    # Every duplicate writes the same value, so their order does not matter.
    return scores.index_put(where, torch.where(seen < 0, seen * penalty, seen / penalty))


def adjust(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Presence and frequency penalty, which know the answer alone, and `logit_bias`, as OpenAI's API defines them."""
    adjusted = [index for index, row in enumerate(rows) if row.params.adjusts]
    if not adjusted:
        return scores
    scores = scores.clone()
    for index in adjusted:
        row, params = scores[index], rows[index].params
        answer_ids = rows[index].answer_ids
        if answer_ids is not None and len(answer_ids):
            counts = torch.bincount(answer_ids, minlength=len(row))
            row -= params.presence_penalty * (counts > 0) + params.frequency_penalty * counts
        if params.logit_bias:
            ids, biases = zip(*params.logit_bias, strict=True)
            where = torch.tensor(ids, device=scores.device)
            row.index_add_(0, where, torch.tensor(biases, dtype=scores.dtype, device=scores.device))
    return scores


def candidates(scores: Tensor, params: Sequence[SamplingParams]) -> list[tuple[Tensor, Tensor]]:
    """For each row the ids that may be drawn and their log-probabilities (float64) up to a constant, in any order.

    Equal scores at the edge of top-k are all kept; at the edge of top-p the lower ids are.
    """
    if not cpu_sampler.serves(scores):
        return candidates_of(scores, params)
    return [
        candidates_of(scores[row : row + 1], [params[row]])[0] if found is None else found
        for row, found in enumerate(cpu_sampler.candidates(scores, params))
    ]


def candidates_of(
    scores: Tensor, params: Sequence[SamplingParams], looked_at: int = _PREFILTER
) -> list[tuple[Tensor, Tensor]]:
    """`candidates` by torch. `looked_at`: how many of the best scores are tried before all of them."""
    # Top-p is a part of what top-k leaves, so all of those must be there; and a few more, to see where equal ones end.
    count = min(max(looked_at, *(2 * one.top_k for one in params)), scores.shape[1])
    values, token_ids = torch.topk(scores, count)
    # Equal scores in order of their ids, which torch.topk does not promise.
    by_id = token_ids.argsort(1)
    by_value = torch.sort(values.gather(1, by_id), dim=1, descending=True, stable=True).indices
    order = by_id.gather(1, by_value)
    values, token_ids = values.gather(1, order), token_ids.gather(1, order)

    def column(of: list[float]) -> Tensor:
        return torch.tensor(of, dtype=torch.float64, device=scores.device).unsqueeze(1)

    # The greatest becomes 0 first, so that no temperature, however small, makes an infinity of it.
    top, temperature = values[:, :1], column([one.temperature for one in params])
    logs = (values - top).double() / temperature
    # Sums over the whole vocabulary in fp32, whose range ends earlier than a temperature's.
    narrow = temperature.clamp(1e-30, 1e30).float()
    top_k = column([one.top_k or scores.shape[1] for one in params]).long()
    least = values.gather(1, top_k.clamp(max=count) - 1)
    in_top_k = values >= least
    mass = logs.exp() * in_top_k
    everything = ((scores - top) / narrow).exp().sum(1, keepdim=True, dtype=torch.float64)
    total = torch.where(top_k < scores.shape[1], mass.sum(1, keepdim=True), everything)
    # Transformers sorts ascending and drops a token while the sum up to and with it is at most `1 - top_p`. The same
    # said from the other end: keep a token while the sum of those before it is less than `top_p`.
    enough = column([one.top_p if one.top_p < 1 else torch.inf for one in params]) * total
    kept = (in_top_k & (mass.cumsum(1) - mass < enough)).sum(1)
    edge = values.gather(1, kept.unsqueeze(1) - 1)
    # What was not looked at is at most the last that was: only below the edge it cannot belong to the kept.
    whole = (top_k >= scores.shape[1]) | (least > values[:, -1:]) | (least == -torch.inf)
    known = ((edge > values[:, -1:]) & whole).squeeze(1)
    settled = known.tolist() if count < scores.shape[1] else [True] * len(scores)
    return [
        (token_ids[row, :number], logs[row, :number])
        if settled[row]
        else candidates_of(scores[row : row + 1], [params[row]], scores.shape[1])[0]
        for row, number in enumerate(kept.tolist())
    ]


def _draw(token_ids: Tensor, log_probabilities: Tensor, row: Row) -> int:
    noise = gumbel(row.params.seed, row.position, token_ids)
    return int(token_ids[(log_probabilities + noise).argmax()])

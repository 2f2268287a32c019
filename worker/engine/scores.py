"""Log-probabilities of tokens under the model's own logits: what `TokenLogprobs` tells, row by row.

Each row is computed alone, so that its numbers do not depend on the rows beside it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.request import TokenLogprobs

# fp32 logits carry no more, and shorter numbers are shorter in every message and row they travel through.
_DIGITS = 6


def score(logits: Tensor, token_ids: Sequence[int], count: int, *, n_vocab: int) -> list[TokenLogprobs]:
    """The log-probability of one id in each row, and `count` of the best there.

    `logits`: fp32 `[rows, rows of the head]`. Columns from `n_vocab` on are padding and take no part.
    """
    return [_of(row, token_id, count) for row, token_id in zip(logits[:, :n_vocab], token_ids, strict=True)]


def _of(row: Tensor, token_id: int, count: int) -> TokenLogprobs:
    best = _best(row, min(count, len(row)))
    ids = torch.cat([torch.tensor([token_id], device=row.device), best])
    total = torch.logsumexp(row.double(), 0)
    values = [round(value, _DIGITS) + 0.0 for value in (row[ids].double() - total).tolist()]
    return TokenLogprobs(values[0], tuple(zip(best.tolist(), values[1:], strict=True)))


def _best(row: Tensor, count: int) -> Tensor:
    """Ids of the greatest, best first, of equals the lower id first, which torch.topk does not promise."""
    if count == 0:
        return torch.tensor([], dtype=torch.int64, device=row.device)
    edge = torch.topk(row, count).values[-1]
    ids = (row >= edge).nonzero().squeeze(1)
    return ids[row[ids].sort(descending=True, stable=True).indices[:count]]

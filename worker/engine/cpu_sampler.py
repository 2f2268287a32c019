"""The candidates of `worker.engine.sampler` by the C++ kernels, where there are any."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worker.engine.request import SamplingParams
from worker.model.cpu import library


def serves(scores: Tensor) -> bool:
    """Whether the kernels can read them: fp32 on a CPU, each row in one piece."""
    on_cpu = scores.device.type == "cpu" and scores.dtype == torch.float32
    return on_cpu and scores.stride(1) == 1 and library.why_not() is None


def candidates(scores: Tensor, params: Sequence[SamplingParams]) -> list[tuple[Tensor, Tensor] | None]:
    """As `worker.engine.sampler.candidates`; None for a row whose temperature is next to nothing beside its top-k.

    Only where `serves(scores)`. The same bits with all instruction sets and whatever other rows there are.
    """
    rows, vocabulary = scores.shape
    choices = np.array([(one.temperature, one.top_p, one.top_k) for one in params], library.CHOICE)
    # Room for all; the system gives memory only for what is written.
    token_ids = torch.empty(rows, vocabulary, dtype=torch.int64)
    logs = torch.empty(rows, vocabulary, dtype=torch.float64)
    counts = torch.empty(rows, dtype=torch.int32)
    library.load().qwenq_candidates(
        scores.data_ptr(),
        scores.stride(0),
        choices.ctypes.data,
        rows,
        vocabulary,
        token_ids.data_ptr(),
        logs.data_ptr(),
        counts.data_ptr(),
        torch.get_num_threads(),
    )
    return [
        (token_ids[row, :count], logs[row, :count]) if count >= 0 else None
        for row, count in enumerate(counts.tolist())
    ]

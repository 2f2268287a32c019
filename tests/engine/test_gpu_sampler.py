"""The GPU's sampler against the one that everything else uses; or in Triton's interpreter, as in test_gpu_kernels."""

import pytest
import torch

from tests.engine.answers import ask
from worker.engine.gpu import sampler as ours
from worker.engine.sampler import NonFiniteLogits, Row, sample
from worker.engine.sequence import Sequence
from worker.engine.static_inputs import StaticInputs
from worker.model.gpu import support

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = support.why_not(DEVICE)
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=f"the kernels cannot run here: it {REASON}"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of NaN, in the interpreter
]
COLUMNS, N_VOCAB = 1024, 1000
KINDS: tuple[dict[str, float], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.8},
    {"temperature": 1.2, "top_k": 20},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "top_p": 0.5, "repetition_penalty": 1.1},
    {"temperature": 1e-20, "top_p": 0.9},
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of the vocabulary, and several turns over what may be kept."""
    monkeypatch.setattr(ours, "BLOCK", 256)
    monkeypatch.setattr(ours, "CHUNK", 128)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_tokens(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    inputs = StaticInputs(len(KINDS), 8, DEVICE)
    sampler = ours.TritonSampler(inputs, n_vocab=N_VOCAB, columns=COLUMNS)
    logits = (3 * torch.randn(len(KINDS), COLUMNS, generator=draw)).half().to(DEVICE)
    sequences, rows = [], []
    for index, kind in enumerate(KINDS):
        ids = torch.randint(0, N_VOCAB, (40,), generator=draw).tolist()
        ids += logits[index, :N_VOCAB].topk(3).indices.tolist()
        request = ask(prompt=ids, seed=seed * 100 + index, **kind)
        sequences.append(Sequence(request, token_bytes=lambda _: b"a", capacity=100))
        sampler.prepare(index, sequences[-1])
        rows.append(Row(request.sampling, 0, torch.tensor(ids, device=DEVICE)))
    inputs.upload(len(KINDS), tables=True)
    if seed == 4:
        logits[0, 7], logits[3, 9] = torch.nan, torch.inf
    tokens = torch.full((len(KINDS),), -2, device=DEVICE)
    sampler.observe(torch.tensor([sequence.ids[-1] for sequence in sequences], device=DEVICE))
    sampler.choose(logits, tokens)
    right = sample(logits.float(), rows, n_vocab=N_VOCAB)
    assert tokens.tolist() == [-1 if isinstance(one, NonFiniteLogits) else one for one in right]

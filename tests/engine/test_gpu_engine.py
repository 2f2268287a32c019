"""The whole engine on a GPU, its graphs and overlapping launches, judged by the model in fp32 on the CPU."""

from pathlib import Path

import pytest
import torch

from tests.engine.answers import ask, run
from tests.model.reader import Reader
from tests.model.tiny import tiny_model
from worker.engine.config import EngineConfig
from worker.engine.loading import assemble
from worker.model.checkpoint import load_model
from worker.model.gpu import support
from worker.model.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or support.why_not(torch.device("cuda")) is not None,
    reason="needs a GPU and Triton",
)
LAYERS = 6


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of sizes that every kernel of ours serves."""
    return tiny_model(
        tmp_path_factory.mktemp("gpu") / "model",
        layers=LAYERS,
        hidden=256,
        head_dim=128,
        mlp=384,
        group_size=128,
        sym=True,
        context=2048,
    )


@pytest.mark.parametrize("attention", [None, "triton-paged"])
@pytest.mark.parametrize("kv_cache", ["auto", "int8"])
def test_every_token_is_one_that_the_cpu_could_have_chosen(
    path: Path, attention: str | None, kv_cache: str
) -> None:
    """Prompts and answers of many lengths come and go, so that batches of all sizes are computed.

    A token may be another than the CPU's where two logits are as near as rounding: in fp16, and in 8 bits.
    """
    model = load_model(path, device="cuda", weights="int4", copies=True)
    config = EngineConfig(
        path, max_running=40, kv_cache_tokens=20_000, attention=attention, kv_cache=kv_cache
    )
    core = assemble(model, Tokenizer.load(path), config)
    requests = [
        ask(str(n), [(7 * n + 3 * k + k * k) % 400 for k in range(1 + 9 * n)], tokens=3 + 5 * (n % 13))
        for n in range(60)
    ]
    requests.append(ask("long", [(5 * k + k * k) % 400 for k in range(1500)], tokens=40))
    answers = run(core, *requests)
    reference = load_model(path, device="cpu", weights="dequantized")
    allowed = 0.03 if kv_cache == "auto" else 0.15
    for request in requests:
        ids, prompt = list(answers[request.request_id].ids), list(request.prompt_ids)
        assert len(ids) == request.sampling.max_new_tokens
        logits = Reader(reference).read(torch.tensor(prompt + ids[:-1]))[len(prompt) - 1 :]
        chosen = logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
        behind = (logits[:, : Tokenizer.load(path).n_vocab].amax(1) - chosen) / logits.std(1)
        assert behind.max() < allowed, request.request_id

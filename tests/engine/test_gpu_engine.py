"""The whole engine on a GPU, its graphs and overlapping launches, judged by the model in fp32 on the CPU."""

from pathlib import Path

import pytest
import torch

from tests.engine.answers import Answer, ask, gather, run
from tests.model.reader import Reader
from tests.model.tiny import tiny_model
from worker.engine.config import EngineConfig
from worker.engine.core import EngineCore
from worker.engine.graphs import GraphRunner
from worker.engine.loading import assemble
from worker.engine.request import GenerationRequest
from worker.model.checkpoint import load_model
from worker.model.gpu import support
from worker.model.qwen import QwenModel
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


@pytest.fixture(scope="module")
def reference(path: Path) -> QwenModel:
    return load_model(path, device="cpu", weights="dequantized")


@pytest.fixture(scope="module")
def model(path: Path) -> QwenModel:
    return load_model(path, device="cuda", weights="int4", copies=True)


@pytest.fixture(params=[(None, "auto"), (None, "int8"), ("triton-paged", "auto"), ("triton-paged", "int8")])
def core(path: Path, model: QwenModel, request: pytest.FixtureRequest) -> EngineCore:
    attention, kv_cache = request.param
    config = EngineConfig(
        path, max_running=120, kv_cache_tokens=40_000, attention=attention, kv_cache=kv_cache
    )
    core = assemble(model, Tokenizer.load(path), config)
    if attention is None and torch.cuda.get_device_capability() == (
        9,
        0,
    ):  # else others would be tested twice
        assert isinstance(core.runner, GraphRunner)
        assert core.runner.backends["attention"] == "cuda-paged"
        assert (core.runner._halves is None) == core.runner.cache.quantized
    return core


def judge(core: EngineCore, reference: QwenModel, request: GenerationRequest, ids: list[int]) -> None:
    """A token may be another than the CPU's where two logits are as near as rounding: in fp16, and in 8 bits."""
    prompt, penalty = list(request.prompt_ids), request.sampling.repetition_penalty
    assert len(ids) == request.sampling.max_new_tokens
    logits = Reader(reference).read(torch.tensor(prompt + ids[:-1]))[len(prompt) - 1 :]
    logits = logits[:, : core._tokenizer.n_vocab].clone()
    for row, scores in enumerate(logits):
        known = torch.tensor(prompt + ids[:row]).unique()
        scores[known] = torch.where(scores[known] < 0, scores[known] * penalty, scores[known] / penalty)
    chosen = logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
    behind = (logits.amax(1) - chosen) / logits.std(1)
    allowed = 0.15 if core.runner.cache.quantized else 0.03
    assert behind.max() < allowed, request.request_id


def test_every_token_is_one_that_the_cpu_could_have_chosen(core: EngineCore, reference: QwenModel) -> None:
    """Prompts and answers of many lengths come and go, so that batches of all sizes are computed."""
    requests = [
        ask(str(n), [(7 * n + 3 * k + k * k) % 400 for k in range(1 + 9 * n % 540)], tokens=3 + 5 * (n % 13))
        for n in range(150)
    ]
    requests.append(ask("long", [(5 * k + k * k) % 400 for k in range(1500)], tokens=40))
    answers = run(core, *requests)
    for request in requests:
        judge(core, reference, request, answers[request.request_id].ids)


def test_pieces_of_prompts_in_graphs(
    core: EngineCore, reference: QwenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come one by one while others run: of odd sizes, on from what is known, penalised, with log-probabilities.

    One at a time as well: pieces behind long beginnings, and whole prompts that other kernels compute.
    """
    assert isinstance(core.runner, GraphRunner)
    plain: list[int] = []
    step = core.runner._plain_step
    monkeypatch.setattr(core.runner, "_plain_step", lambda plan: plain.append(len(plan)) or step(plan))
    requests, answers = list[GenerationRequest](), dict[str, Answer]()

    def submit(request: GenerationRequest) -> None:
        requests.append(request)
        core.submit(request)

    for n in range(45):
        text = [(11 * n + 5 * k + k * k) % 400 for k in range(1 + 37 * n % 230)]
        if n % 3 == 2:  # the turn after an earlier one
            before = requests[n // 2]
            said = answers[before.request_id].ids if before.request_id in answers else []
            text = [*before.prompt_ids, *said, *text[: 1 + n % 40]]
        more = {"repetition_penalty": 1.2} if n % 4 == 1 else {"logprobs": 2} if n % 7 == 3 else {}
        submit(ask(str(n), text, tokens=5 + 4 * (n % 9), **more))
        for _ in range(1 + n % 3):
            gather(core.step(), answers)
    while core.busy:
        gather(core.step(), answers)
    said = []
    for n, new in enumerate((900, 20, 47, 300, 5)):
        said += [(13 * n + 7 * k + k * k) % 400 for k in range(new)]
        request = ask(f"turn {n}", said, tokens=6)
        submit(request)
        while core.busy:
            gather(core.step(), answers)
        said += answers[request.request_id].ids
    for length in (769, 1024, 1025, 1800, 2040):
        submit(ask(f"whole {length}", [(3 * k + k * k + length) % 400 for k in range(length)], tokens=4))
        while core.busy:
            gather(core.step(), answers)
    for request in requests:
        judge(core, reference, request, answers[request.request_id].ids)
    # In 8 bits there is no kernel for whole prompts, and no shape for so many rows.
    assert plain == ([1, 1, 1] if core.runner.cache.quantized else [])
    assert core.scheduler.cached_tokens > 3000
    core.scheduler.check_integrity()


def test_answers_alone_and_beside_others(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of sizes for which a row that is alone has all its layers in one launch: the cache is the same for both."""
    path = tiny_model(
        tmp_path_factory.mktemp("wide") / "model",
        hidden=2048,
        head_dim=128,
        mlp=5504,
        group_size=128,
        sym=True,
        other_biases="absent",
        context=2048,
    )
    reference = load_model(path, device="cpu", weights="dequantized")
    model = load_model(path, device="cuda", weights="int4", copies=False)
    core = assemble(model, Tokenizer.load(path), EngineConfig(path, max_running=4, kv_cache_tokens=8000))
    assert isinstance(core.runner, GraphRunner)
    if core.runner._stack is None:
        pytest.skip("this GPU has no such launch")
    text = [(5 * k + k * k) % 400 for k in range(700)]
    alone = [ask(f"alone {count}", text[:count], tokens=40) for count in (1, 16, 130, 700)]
    beside = [ask(f"beside {count}", text[-count:], tokens=count) for count in (8, 30, 60)]
    answers = dict[str, Answer]()
    for some in (
        *([request] for request in alone),
        beside,
    ):  # at the end of the last the longest is alone again
        answers |= run(core, *some)
    for request in (*alone, *beside):
        judge(core, reference, request, answers[request.request_id].ids)

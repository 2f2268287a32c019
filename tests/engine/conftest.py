"""A tiny random model in fp32, where reading a prompt at once and token by token agree to the last choice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.tiny import tiny_model
from worker.engine.config import EngineConfig
from worker.engine.core import EngineCore
from worker.engine.loading import assemble
from worker.model.checkpoint import load_model
from worker.model.qwen import QwenModel
from worker.model.tokenizer import Tokenizer

CONTEXT = 96
MakeCore = Callable[..., EngineCore]


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model", context=CONTEXT)


@pytest.fixture(scope="session")
def model(tiny_path: Path) -> QwenModel:
    return load_model(tiny_path, device="cpu", weights="dequantized")


@pytest.fixture(scope="session")
def tokenizer(tiny_path: Path) -> Tokenizer:
    return Tokenizer.load(tiny_path)


@pytest.fixture
def make_core(model: QwenModel, tokenizer: Tokenizer) -> MakeCore:
    """A core on the tiny model, or on another that is given, with small steps and blocks."""

    def make(
        served: QwenModel = model,
        now: Callable[[], float] | None = None,
        block_size: int = 4,
        graphs: bool | None = None,
        **options: object,
    ) -> EngineCore:
        config = EngineConfig(
            Path(), **{"max_running": 8, "step_tokens": 16, "kv_cache_tokens": 4 * CONTEXT} | options
        )
        clock = {} if now is None else {"now": now}  # otherwise the product's own
        return assemble(served, tokenizer, config, block_size=block_size, graphs=graphs, **clock)

    return make


@pytest.fixture
def core(make_core: MakeCore) -> EngineCore:
    return make_core()

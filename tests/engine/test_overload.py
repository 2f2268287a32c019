"""More than fits: the longest prompt there may be, 256 answers at once, and a KV cache with room for one context."""

from pathlib import Path

from tests.engine.answers import ask, run
from tests.model.tiny import tiny_model
from worker.engine.config import EngineConfig
from worker.engine.loading import assemble
from worker.engine.request import Finished
from worker.model.checkpoint import load_model
from worker.model.tokenizer import Tokenizer

CONTEXT = 8192


def test_all_end_by_themselves_and_nothing_is_left(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "model", context=CONTEXT, layers=1, hidden=64, mlp=64)
    model, tokenizer = load_model(path, device="cpu", weights="dequantized"), Tokenizer.load(path)
    core = assemble(
        model, tokenizer, EngineConfig(path, max_running=256, step_tokens=2048, kv_cache_tokens=CONTEXT)
    )
    many = [
        ask(f"r{number}", [(number * 7 + at) % 400 for at in range(20 + number % 23)], tokens=80 + number % 9)
        for number in range(256)
    ]
    longest = ask("longest", [at % 400 for at in range(CONTEXT - 1)], tokens=50)
    answers = run(core, *many[:128], longest, *many[128:])
    ends = {name: answer.end for name, answer in answers.items()}
    assert len(ends) == 257
    assert all(isinstance(end, Finished) and end.reason == "length" for end in ends.values())
    assert [len(answers[f"r{number}"].ids) for number in range(256)] == [
        80 + number % 9 for number in range(256)
    ]
    assert len(answers["longest"].ids) == 1
    stats = core.stats
    assert stats.preemptions > 0, "it did fit after all"
    assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.total_blocks)
    core.scheduler.check_integrity()

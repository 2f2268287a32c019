"""The real engine process: many callers at once, and what happens when it is killed, frozen or orphaned."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.answers import SAMPLED, Answer, ask, run
from tests.model.tiny import tiny_model
from worker.engine.client import Engine, EventStream
from worker.engine.config import EngineConfig
from worker.engine.errors import EngineDied, EngineStartError
from worker.engine.loading import assemble
from worker.engine.request import Finished, GenerationRequest, Tokens
from worker.engine.stats import EngineStats
from worker.model.checkpoint import load_model
from worker.model.cpu import library
from worker.model.tokenizer import Tokenizer

PATIENCE = 60.0  # seconds; for what takes a few on a machine with nothing else to do
ENDLESS = 8000  # tokens; takes a minute at least


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with Qwen's context, so that an answer can be long."""
    return tiny_model(tmp_path_factory.mktemp("client") / "tiny")


def config(path: Path, **options: object) -> EngineConfig:
    # In fp32 the answer is the same however its prompt was read, so answers can be compared.
    return EngineConfig(path, **{"device": "cpu", "weights": "dequantized", "threads": 1} | options)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine(config(checkpoint)) as engine:
        engine.wait_ready(PATIENCE)
        yield engine


@pytest.fixture
def alone(checkpoint: Path) -> Callable[[GenerationRequest], Answer]:
    """What the same request gives in this process, with no other beside it."""
    model = load_model(checkpoint, device="cpu", weights="dequantized")
    core = assemble(model, Tokenizer.load(checkpoint), config(checkpoint, max_running=1))
    # A salt for each: nothing of one is in the cache for the next.
    return lambda request: run(core, replace(request, cache_salt=request.request_id))[request.request_id]


def follow(stream: EventStream, answer: Answer | None = None) -> Answer:
    """The whole answer."""
    answer = answer or Answer()
    while answer.end is None:
        event = stream.next_event(PATIENCE)
        assert event is not None
        answer.take(event)
    return answer


def begun(stream: EventStream) -> Answer:
    """The answer up to its first tokens."""
    answer, event = Answer(), stream.next_event(PATIENCE)
    assert isinstance(event, Tokens)
    answer.take(event)
    return answer


def interrupted(stream: EventStream, answer: Answer) -> str:
    """Follow an answer to the death of the engine: what was said about it."""
    with pytest.raises(EngineDied) as died:
        follow(stream, answer)
    assert answer.end is None
    return str(died.value)


def test_it_says_what_it_is(engine: Engine) -> None:
    info = engine.wait_ready(PATIENCE)
    assert (info.model, info.device, info.context_length, info.n_vocab) == (
        "tiny",
        "cpu (1 threads)",
        8192,
        480,
    )
    assert info.backends["attn.c_attn"] == "dense float32"
    assert info.backends["attention"] == ("cpu-paged" if library.why_not() is None else "torch-sequences")
    assert engine.alive


def test_many_callers_at_once_each_get_their_own_answer(
    engine: Engine, alone: Callable[[GenerationRequest], Answer]
) -> None:
    requests = [
        ask(f"r{n}", range(n + 1, n + 2 + 40 * (n % 3)), tokens=10 + n, **(SAMPLED | {"seed": n}))
        for n in range(32)
    ]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda request: follow(engine.submit(request)), requests))
    assert answers == [alone(request) for request in requests]


def test_a_second_request_of_the_same_id_is_refused_while_the_first_is_open(engine: Engine) -> None:
    stream = engine.submit(ask("twice", tokens=200))
    with pytest.raises(ValueError, match="twice"):
        engine.submit(ask("twice"))
    follow(stream)
    follow(engine.submit(ask("twice")))


def test_cancelled_requests_end_and_the_others_go_on(engine: Engine) -> None:
    streams = {name: engine.submit(ask(name, tokens=ENDLESS)) for name in ("one", "two")}
    answers = {name: begun(stream) for name, stream in streams.items()}
    engine.cancel("nobody")
    for name, stream in streams.items():
        engine.cancel(name)
        end = follow(stream, answers[name]).end
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"
        assert end.output_tokens == len(answers[name].ids)
    assert len(follow(engine.submit(ask("after", tokens=3))).ids) == 3


def test_its_counters_come_with_the_heartbeat(engine: Engine) -> None:
    before = settled(engine)
    follow(engine.submit(ask("counted", range(100, 150), tokens=20)))
    after = settled(engine)
    assert after.prefill_tokens - before.prefill_tokens == 50
    assert after.decode_tokens - before.decode_tokens == 19
    assert after.running == after.waiting == 0
    assert after.free_blocks == after.total_blocks > 0


def settled(engine: Engine) -> EngineStats:
    """The counters of an engine with nothing to do: the first heartbeat may have been on its way already."""
    last = None
    for _ in range(3):
        end, old = time.monotonic() + PATIENCE, last
        while (last := engine.stats) is old:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert last is not None
    return last


def test_signals_to_the_whole_group_leave_the_engine_working(engine: Engine) -> None:
    stream = engine.submit(ask("steady", tokens=100))
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert len(follow(stream).ids) == 100
    assert engine.pid == pid
    assert engine.seconds_since_heartbeat < PATIENCE


def test_a_killed_engine_is_replaced_and_answers_go_on_from_their_tokens(
    checkpoint: Path, alone: Callable[[GenerationRequest], Answer]
) -> None:
    with Engine(config(checkpoint)) as engine:
        engine.wait_ready(PATIENCE)
        requests = [ask(str(n), range(n, n + 9), tokens=150, **SAMPLED) for n in range(6)]
        streams = [engine.submit(request) for request in requests]
        answers = [begun(stream) for stream in streams]
        first = engine.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        with ThreadPoolExecutor(6) as pool:
            told = set(pool.map(interrupted, streams, answers))
        assert told == {"the engine process ended with signal SIGKILL"}
        for request, answer in zip(requests, answers, strict=True):
            assert 0 < len(answer.ids) < 150
            again = replace(request, resumed_ids=tuple(answer.ids))
            assert follow(engine.submit(again), answer) == alone(request)
        assert engine.pid not in (None, first)


def test_a_frozen_engine_is_noticed_and_replaced(checkpoint: Path) -> None:
    with Engine(config(checkpoint), stall_timeout=5) as engine:
        engine.wait_ready(PATIENCE)
        stream = engine.submit(ask(tokens=ENDLESS))
        answer, frozen = begun(stream), engine.pid
        assert frozen is not None
        os.kill(frozen, signal.SIGSTOP)
        assert interrupted(stream, answer) == "the engine process said nothing for 5 s and was killed"
        assert len(follow(engine.submit(ask(tokens=3))).ids) == 3
        assert engine.pid not in (None, frozen)


def test_a_model_that_is_gone_at_a_restart_fails_requests_until_it_is_back(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "model")
    with Engine(config(path)) as engine:
        engine.wait_ready(PATIENCE)
        path.rename(tmp_path / "away")
        stream = engine.submit(ask(tokens=ENDLESS))
        answer = begun(stream)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        interrupted(stream, answer)
        assert str(path) in interrupted(engine.submit(ask()), Answer())
        (tmp_path / "away").rename(path)
        assert engine.wait_ready(PATIENCE).model == "model"
        assert len(follow(engine.submit(ask(tokens=3))).ids) == 3


def test_requests_may_come_before_the_model_is_loaded(checkpoint: Path) -> None:
    with Engine(config(checkpoint)) as engine:
        waiting, cancelled = (
            engine.submit(ask("waiting", tokens=3)),
            engine.submit(ask("cancelled", tokens=ENDLESS)),
        )
        engine.cancel("cancelled")
        assert not engine.alive
        assert len(follow(waiting).ids) == 3
        end = follow(cancelled).end
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"


def test_stop_ends_the_process_and_fails_what_is_open(checkpoint: Path) -> None:
    engine = Engine(config(checkpoint))
    engine.start()
    engine.wait_ready(PATIENCE)
    stream = engine.submit(ask(tokens=ENDLESS))
    answer = begun(stream)
    engine.stop(timeout=PATIENCE)
    assert interrupted(stream, answer) == "the engine was stopped"
    assert not engine.alive
    assert engine.pid is None
    assert engine.seconds_since_heartbeat == float("inf")
    with pytest.raises(EngineDied, match="stopped"):
        engine.submit(ask())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model_path": Path("/nowhere/model")}, r"/nowhere/model.*checkpoint folder\?"),
        ({"attention": "magic"}, "no attention backend 'magic'; known are .*torch-sequences"),
        (
            {"attention": "torch-gathered", "deterministic": True},
            "torch-gathered pads sequences to the longest of them",
        ),
        pytest.param(
            {"device": "cuda"},
            "finds no usable GPU; set it to auto or cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
    ids=["no model", "unknown attention", "attention that cannot", "no GPU"],
)
def test_a_start_that_cannot_succeed_says_why(checkpoint: Path, options: dict, says: str) -> None:
    with Engine(config(options.pop("model_path", checkpoint), **options)) as engine:
        with pytest.raises(EngineStartError, match=says):
            engine.wait_ready(PATIENCE)
        with pytest.raises(EngineDied, match=says):
            engine.submit(ask())
        with pytest.raises(EngineStartError, match=says):
            engine.wait_ready(PATIENCE)


def test_a_rank_file_of_another_model_is_refused(tmp_path: Path) -> None:
    with (
        Engine(config(tiny_model(tmp_path, vocab_size=448))) as engine,
        pytest.raises(EngineStartError, match="480"),
    ):
        engine.wait_ready(PATIENCE)


def test_the_engine_ends_with_its_parent_even_in_the_middle_of_an_answer(checkpoint: Path) -> None:
    """Both write to one stderr; it ends when both have ended. Every line of it is one event."""
    command = [sys.executable, "-m", "tests.engine.parent", str(checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "generating\n"
        finally:
            parent.kill()
        _, log = parent.communicate(timeout=PATIENCE)
    assert "loaded" in log
    for line in log.splitlines():
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO engine\[\d+\] .+", line)

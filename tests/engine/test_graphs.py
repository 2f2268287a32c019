"""Steps launched ahead: the graph runner's logic, on a CPU with plain calls in place of graphs.

What a step ahead must not change: any answer. What it must drop: tokens of those that ended meanwhile.
"""

from functools import partial

import pytest
from hypothesis import given, settings

from tests.engine.answers import SAMPLED, Answer, ask, gather, run
from tests.engine.conftest import MakeCore
from tests.engine.pieces import TorchPieces
from tests.engine.test_schedules import LIVES, Asked, live, lives, teller
from worker.engine import attention, mixed
from worker.engine.core import EngineCore
from worker.engine.graphs import GraphRunner
from worker.engine.request import Event, Finished, Tokens


@pytest.fixture(params=["torch-gathered", "torch-pieces"])
def make_ahead(
    make_core: MakeCore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> MakeCore:
    """A core whose runner launches ahead; with pieces of prompts in plain calls, and in steps of fixed shapes."""
    monkeypatch.setitem(attention._EVERYWHERE, "cpu", (*attention._EVERYWHERE["cpu"], TorchPieces()))
    monkeypatch.setattr(mixed, "ROWS", (3, 4, 7, 12, 17))
    monkeypatch.setattr(mixed, "WHOLE", (7, 10))
    return partial(make_core, attention=request.param, graphs=True)


@pytest.fixture
def ahead(make_ahead: MakeCore) -> EngineCore:
    return make_ahead()


@pytest.fixture(scope="module")
def answered() -> dict[tuple[bool, Asked], Answer]:
    return {}


def test_answers_are_those_of_a_runner_that_waits(make_core: MakeCore, make_ahead: MakeCore) -> None:
    """Greedy ones, which are chosen on the device, beside sampled ones, which are not; prompts in pieces."""
    requests = [
        ask(str(n), range(n, n + 3 + 11 * n), tokens=20, **(SAMPLED if n % 3 == 2 else {})) for n in range(6)
    ]
    core = make_ahead()
    assert isinstance(core.runner, GraphRunner)
    assert run(core, *requests) == run(make_core(attention="torch-gathered"), *requests)
    assert core.stats.free_blocks == core.stats.total_blocks


def test_a_token_is_taken_while_the_next_step_is_under_way(ahead: EngineCore) -> None:
    ahead.submit(ask(tokens=3))
    launched = []
    launch = ahead.runner.launch
    ahead.runner.launch = lambda plan: launched.append(len(plan)) or launch(plan)  # type: ignore[method-assign]
    tokens = [(sum(isinstance(event, Tokens) for event in ahead.step()), len(launched)) for _ in range(4)]
    # The first step brings nothing, the last launches nothing: three launches for three tokens.
    assert tokens == [(0, 1), (1, 2), (1, 3), (1, 3)]
    assert not ahead.busy


@pytest.mark.parametrize("stop", [3, 15, 16])
def test_a_stop_is_found_late_and_what_came_behind_it_is_dropped(make_ahead: MakeCore, stop: int) -> None:
    free = run(make_ahead(), ask(tokens=30))["a"]
    core = make_ahead()
    answer = run(core, ask(tokens=30, stop_ids=[free.ids[stop]]))["a"]
    assert answer.ids == free.ids[: free.ids.index(free.ids[stop])]
    assert isinstance(answer.end, Finished)
    assert (answer.end.reason, answer.end.output_tokens) == ("stop", len(answer.ids))
    assert core.stats.free_blocks == core.stats.total_blocks
    # Nobody finds a block with what was computed behind the stop.
    known = [5, 6, 7, 8, *answer.ids]
    assert len(core.scheduler.blocks.match("", [*known, free.ids[stop], 0, 0, 0, 0])) == len(known) // 4


def test_one_that_is_cancelled_in_between_has_no_token_more(ahead: EngineCore) -> None:
    ahead.submit(ask("gone", tokens=50))
    ahead.submit(ask("stays", range(9, 20), tokens=6))
    events: list[Event] = []
    for _ in range(3):
        events += ahead.step()
    ahead.cancel("gone")
    ahead.submit(ask("new", range(30, 37), tokens=6))  # takes the blocks that became free
    while ahead.busy:
        events += ahead.step()
        ahead.scheduler.check_integrity()
    answers = gather(events)
    alone = run(
        ahead, ask("stays", range(9, 20), tokens=6, salt="alone"), ask("new", range(30, 37), tokens=6)
    )
    assert answers["stays"].ids == alone["stays"].ids
    assert answers["new"].ids == alone["new"].ids
    assert isinstance(answers["gone"].end, Finished)
    assert len(answers["gone"].ids) == 2


def test_pieces_of_prompts_are_steps_of_fixed_shapes(make_ahead: MakeCore) -> None:
    """What fits takes the least shape; what asks for log-probabilities of its prompt, or is too long, takes none."""
    core = make_ahead(step_tokens=40)
    if core.runner._mixed is None:
        pytest.skip("plain calls")
    taken: list[tuple[int, int, bool]] = []
    step = core.runner._mixed.step
    core.runner._mixed.step = lambda shape, tokens: taken.append(shape) or step(shape, tokens)
    run(core, ask(prompt=range(6), tokens=1, salt="a"))
    run(core, ask(prompt=range(9), tokens=1, salt="b"))
    run(core, ask(prompt=range(11), tokens=1, salt="c"))
    run(core, ask(prompt=range(12), tokens=1, salt="c"))  # two blocks of four are known
    run(core, ask("a", range(2), tokens=1, salt="d"), ask("b", range(9), tokens=1, salt="e"))
    run(core, ask(prompt=range(18), tokens=1, salt="f"), ask(prompt=range(3), tokens=1, prompt_logprobs=1))
    assert taken == [(7, 1, True), (10, 1, True), (12, 1, False), (4, 1, False), (12, 8, False)]


@settings(LIVES, max_examples=60)
@given(life=lives(seeds=1))
def test_whatever_happens_when_every_answer_is_the_one_it_is_alone(
    make_core: MakeCore, make_ahead: MakeCore, answered: dict[tuple[bool, Asked], Answer], life: tuple
) -> None:
    live(make_ahead, teller(make_core, answered, deterministic=False), life)

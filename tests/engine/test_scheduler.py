"""The scheduler alone, with a model in its place that needs no arithmetic."""

from collections.abc import Sequence as Several

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.answers import ask
from worker.engine.blocks import BlockManager
from worker.engine.request import Tokens
from worker.engine.scheduler import Scheduler, Work
from worker.engine.sequence import Sequence

CAPACITY = 64


def sequence(name: str, prompt: Several[int], tokens: int = 10, salt: str = "") -> Sequence:
    request = ask(name, prompt, tokens=tokens, salt=salt)
    return Sequence(request, token_bytes=lambda _: b"", capacity=CAPACITY)


def next_id(one: Sequence) -> int:
    """A model that looks at everything it has read."""
    return hash(tuple(one.ids)) % 50


def compute(scheduler: Scheduler, plan: list[Work]) -> list[Tokens]:
    """Do what was planned; sequences that end leave."""
    events = []
    for work in plan:
        assert work.start == work.sequence.computed, "nothing is left out or computed twice"
        assert len(work.sequence.blocks) * scheduler.blocks.size >= work.start + work.count
        token = next_id(work.sequence)
        scheduler.launched(work)
        scheduler.done(work)
        if work.completes:
            events.append(work.sequence.append(token))
            if work.sequence.ended:
                scheduler.remove(work.sequence)
    return events


def scheduler(blocks: int = 64, size: int = 4, *, running: int = 8, budget: int = 16) -> Scheduler:
    return Scheduler(BlockManager(blocks, size), max_running=running, step_tokens=budget)


def test_a_prompt_that_nobody_runs_beside_is_read_in_one_step() -> None:
    """But not once an answer would wait for it."""
    tasks = Scheduler(BlockManager(64, 4), max_running=8, step_tokens=16, alone_tokens=50)
    first, second = (
        Sequence(ask(name, range(base, base + 60)), token_bytes=lambda _: b"a", capacity=CAPACITY)
        for name, base in (("first", 0), ("second", 100))
    )
    tasks.add(first)
    plan = tasks.plan()
    assert [work.count for work in plan] == [50]
    tasks.launched(plan[0])
    tasks.add(second)
    assert [work.count for work in tasks.plan()] == [10, 6]


@settings(max_examples=300, deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, CAPACITY - 1), st.integers(1, 30)),
        min_size=1,
        max_size=12,
    ),
    blocks=st.integers(16, 40),
    running=st.integers(1, 8),
    budget=st.integers(1, 40),
    every=st.integers(1, 5),
)
def test_all_end_with_the_tokens_they_have_alone(
    prompts: list[tuple[int, int, int]], blocks: int, running: int, budget: int, every: int
) -> None:
    """The cache holds the longest alone at least (16 blocks of 4). One arrives every so many steps."""
    served = scheduler(blocks, running=running, budget=budget)
    asked = [
        sequence(str(n), range(kind, kind + length), tokens)
        for n, (kind, length, tokens) in enumerate(prompts)
    ]
    arriving, answers = list(asked), {one.request.request_id: list[int]() for one in asked}
    for step in range(20_000):
        if arriving and step % every == 0:
            served.add(arriving.pop(0))
        plan = served.plan()
        assert bool(plan) == bool(served.running or served.waiting)
        assert sum(work.count for work in plan) <= max(budget, running + 1)
        assert [work.count > 1 for work in plan] == sorted(work.count > 1 for work in plan)
        assert len(served.running) <= running
        planned = [work.sequence for work in plan]
        assert all(one in planned for one in served.running if one.missing == 1), "every answer goes on"
        served.check_integrity()
        for event in compute(served, plan):
            assert event.index == len(answers[event.request_id])
            answers[event.request_id] += event.token_ids
        if not (arriving or served.running or served.waiting):
            break
    for one in asked:
        alone = sequence("alone", one.request.prompt_ids, one.request.sampling.max_new_tokens)
        while not alone.ended:
            token = next_id(alone)
            alone.expect()
            alone.append(token)
        assert answers[one.request.request_id] == alone.ids[len(one.request.prompt_ids) :].tolist()
    assert served.blocks.free == blocks


def test_the_oldest_goes_on_and_the_youngest_gives_way() -> None:
    served = scheduler(16, running=3, budget=64)
    for name in "abc":
        served.add(sequence(name, range(ord(name), ord(name) + 12), tokens=40))
    alive = []
    while served.running or served.waiting:
        compute(served, served.plan())
        alive.append([one.request.request_id for one in served.running])
    assert served.preemptions >= 2
    firsts = [names[0] for names in alive if names]
    assert firsts == sorted(firsts), "no one that came later ends before the oldest does"


def test_what_waits_first_is_not_overtaken_by_what_would_fit() -> None:
    served = scheduler(16, running=8, budget=64)
    for name, length in (("first", 30), ("large", 40), ("small", 2)):
        served.add(sequence(name, [len(name)] * length))
    assert [work.sequence.request.request_id for work in served.plan()] == ["first"]


def test_two_that_begin_alike_share_the_blocks_of_it() -> None:
    served = scheduler(16, running=8, budget=64)
    served.add(sequence("a", range(30)))
    compute(served, served.plan())
    served.add(sequence("b", range(30)))
    plan = served.plan()
    assert [(work.start, work.count) for work in plan] == [(30, 1), (28, 2)]
    assert served.cached_tokens == 28
    assert served.blocks.free == 16 - 8 - 1

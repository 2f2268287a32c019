"""Events of many steps in few messages: nothing lost, nothing out of order, nobody kept waiting."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.answers import ask
from worker.engine.outgoing import QUIET_WINDOW_SECONDS, WINDOW_SECONDS, Outgoing
from worker.engine.request import Event, Failed, Finished, TokenLogprobs, Tokens

# A step: how long it took in milliseconds, and for each request whether it has a token (1), ends (2), or waits (0).
STEPS = st.lists(
    st.tuples(st.integers(0, 12), st.lists(st.sampled_from([0, 1, 1, 1, 2]), min_size=3, max_size=3)),
    max_size=40,
)


class Line:
    """A clock that is set and a far end that remembers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.messages: list[list[Event]] = []
        self.outgoing = Outgoing(self.messages.append, lambda: self.now)

    def step(self, seconds: float, *events: Event) -> list[Event]:
        """Let a step end; what was sent in it."""
        self.now += seconds
        before = len(self.messages)
        self.outgoing.put(events)
        return [event for message in self.messages[before:] for event in message]


def token(request_id: str, index: int) -> Tokens:
    return Tokens(request_id, index, [index], [chr(97 + index % 26)], [TokenLogprobs(-float(index), ())])


def finished(request_id: str) -> Finished:
    return Finished(request_id, "stop", "", 3, 0, 9)


def test_a_first_token_and_an_end_wait_for_nothing_and_what_is_between_travels_together() -> None:
    line = Line()
    assert line.step(0.001, token("a", 0)) == [token("a", 0)]
    assert line.step(0.001, token("a", 1)) == []
    assert line.step(0.001, token("a", 2), token("b", 0)) == [token("b", 0)]
    (joined,) = line.step(WINDOW_SECONDS, token("a", 3))
    assert joined == Tokens(
        "a", 1, [1, 2, 3], ["b", "c", "d"], [TokenLogprobs(-float(n), ()) for n in (1, 2, 3)]
    )
    assert line.step(0.001, token("a", 4), token("b", 1)) == []
    assert line.step(0.001, token("a", 5), finished("a")) == [
        Tokens("a", 4, [4, 5], ["e", "f"], [TokenLogprobs(-4.0, ()), TokenLogprobs(-5.0, ())]),
        finished("a"),
    ]


def test_a_failure_takes_its_tokens_along() -> None:
    line = Line()
    line.step(0.001, token("a", 0), token("a", 1))
    failed = Failed("a", "server_error", "no")
    assert line.step(0.001, failed) == [token("a", 1), failed]


def test_tokens_go_when_their_time_is_over_although_no_new_ones_come() -> None:
    line = Line()
    line.step(0.001, token("a", 0))
    line.step(0.001, token("a", 1))
    assert line.step(WINDOW_SECONDS) == [token("a", 1)]
    assert line.step(WINDOW_SECONDS) == []
    assert all(line.messages), "an empty message wakes the worker for nothing"


def test_tokens_that_nobody_follows_wait_longer_than_those_of_others() -> None:
    line = Line()
    line.outgoing.expect(replace(ask(), request_id="a", followed=False))
    line.outgoing.expect(replace(ask(), request_id="b"))
    assert line.step(0.001, token("a", 0), token("b", 0)) == [token("a", 0), token("b", 0)]
    line.step(0.001, token("a", 1), token("b", 1))
    assert line.step(WINDOW_SECONDS) == [token("b", 1)]
    assert line.step(QUIET_WINDOW_SECONDS) == [token("a", 1)]
    line.step(0.001, token("a", 2))
    assert line.step(0.001, finished("a")) == [token("a", 2), finished("a")]
    # Another request of that name, as after a new attempt, is followed again.
    line.step(0.001, token("a", 0), token("a", 1))
    assert line.step(WINDOW_SECONDS) == [token("a", 1)]


def test_what_nobody_follows_goes_a_few_requests_at_a_time_and_none_of_it_late() -> None:
    line, step = Line(), 0.0025
    names = [str(number) for number in range(64)]
    for name in names:
        line.outgoing.expect(replace(ask(), request_id=name, followed=False))
    made = dict[tuple[str, int], float]()
    for turn in range(600):
        running = names[: 1 + turn]  # one more each step
        events = [token(name, turn - int(name)) for name in running]
        made |= {(event.request_id, event.index): line.now + step for event in events}
        sent = [event for event in line.step(step, *events) if isinstance(event, Tokens) and event.index]
        assert len(sent) <= 32
        for event in sent:
            assert line.now - made[event.request_id, event.index] <= QUIET_WINDOW_SECONDS + step
    assert len(line.messages) < 120, "one a look, and a first token of each"


@given(STEPS)
def test_each_request_hears_its_own_events_in_order_and_within_the_window(
    steps: list[tuple[int, list[int]]],
) -> None:
    line = Line()
    made: dict[str, list[Event]] = {name: [] for name in "abc"}
    heard: dict[str, list[Event]] = {name: [] for name in "abc"}
    for milliseconds, row in steps:
        events: list[Event] = []
        for name, what in zip("abc", row, strict=True):
            if what and not (made[name] and isinstance(made[name][-1], Finished)):
                events.append(token(name, len(made[name])) if what == 1 else finished(name))
                made[name].append(events[-1])
        for event in line.step(milliseconds / 1000, *events):
            heard[event.request_id].append(event)
    for event in line.step(WINDOW_SECONDS):
        heard[event.request_id].append(event)
    for name in "abc":
        assert single(heard[name]) == made[name]


def single(events: list[Event]) -> list[Event]:
    """The events as they were before they were joined."""
    found: list[Event] = []
    for event in events:
        if isinstance(event, Tokens):
            assert event.logprobs is not None
            rows = zip(event.token_ids, event.pieces, event.logprobs, strict=True)
            found += [
                Tokens(event.request_id, event.index + n, [token_id], [piece], [logprobs])
                for n, (token_id, piece, logprobs) in enumerate(rows)
            ]
        else:
            found.append(event)
    return found

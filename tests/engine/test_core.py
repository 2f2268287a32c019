"""The loop on a tiny model: answers, turns, ends, and failures that stay with their request."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.answers import SAMPLED, Answer, ask, gather, run
from tests.engine.conftest import CONTEXT, MakeCore
from tests.model.reader import Reader
from worker.engine.core import EngineCore
from worker.engine.request import Failed, Finished, Tokens
from worker.model.checkpoint import load_model
from worker.model.qwen import Attend, QwenModel
from worker.model.tokenizer import Tokenizer

LONG = tuple(range(40))


def greedy(model: QwenModel, tokens: int, n_vocab: int, penalty: float) -> list[int]:
    """The answer to LONG without cache, pieces or batch: the whole sequence anew for every token."""
    ids = list(LONG)
    for _ in range(tokens):
        logits = Reader(model).read(torch.tensor(ids))[-1, :n_vocab].clone()
        for seen in set(ids):
            logits[seen] *= penalty if logits[seen] < 0 else 1 / penalty
        ids.append(int(logits.argmax()))
    return ids[len(LONG) :]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_a_greedy_answer_is_the_models_own(
    core: EngineCore, model: QwenModel, tokenizer: Tokenizer, penalty: float
) -> None:
    answer = run(core, ask(prompt=LONG, tokens=20, repetition_penalty=penalty))["a"]
    assert answer.ids == greedy(model, 20, tokenizer.n_vocab, penalty)
    assert answer.text == tokenizer.decode(answer.ids)
    assert isinstance(answer.end, Finished)
    assert (answer.end.reason, answer.end.prompt_tokens, answer.end.output_tokens) == ("length", 40, 20)


def test_requests_do_not_change_one_another(make_core: MakeCore) -> None:
    requests = [
        ask(str(n), range(n, n + 1 + 9 * (n % 4)), tokens=5 + n, **(SAMPLED if n % 2 else {}))
        for n in range(6)
    ]
    alone = {request.request_id: run(make_core(), request)[request.request_id] for request in requests}
    assert run(make_core(), *requests) == alone
    assert run(make_core(max_running=2, step_tokens=64), *requests) == alone


def test_a_long_prompt_does_not_keep_the_others_waiting(make_core: MakeCore) -> None:
    """It takes 11 steps of 9 tokens, one of them the other's; in each of them the other has its token."""
    core = make_core(step_tokens=9)
    core.submit(ask("short", tokens=30))
    core.step()
    core.submit(ask("long", range(88), tokens=1))
    for _ in range(11):
        events = core.step()
        assert next(event.request_id for event in events if isinstance(event, Tokens)) == "short"
    assert [event.request_id for event in events] == ["short", "long", "long"]


def test_no_more_run_than_may_and_the_others_wait_their_turn(make_core: MakeCore) -> None:
    core = make_core(max_running=2)
    for name in "abcd":
        core.submit(ask(name, tokens=2))
    order = []
    while core.busy:
        order += [event.request_id for event in core.step() if isinstance(event, Tokens)]
    assert order == ["a", "b", "a", "b", "c", "d", "c", "d"]


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("stopped", [False, True])
def test_an_answer_resumed_anywhere_is_the_uninterrupted_one(
    make_core: MakeCore, sampling: dict[str, float], stopped: bool
) -> None:
    """Killed after every number of tokens: ids, pieces and end are what one attempt gives."""
    free = run(make_core(), ask(tokens=24, **sampling))["a"]
    stops = [free.text[-5:-3]] if stopped else []
    whole = run(make_core(), ask(tokens=24, stops=stops, **sampling))["a"]
    assert isinstance(whole.end, Finished)
    assert whole.end.reason == ("stop" if stopped else "length")
    for cut in range(len(whole.ids) + 1):
        first = {"a": Answer(whole.ids[:cut], whole.pieces[:cut], whole.logprobs[:cut])}
        core = make_core()
        core.submit(ask(tokens=24, stops=stops, resumed=whole.ids[:cut], **sampling))
        events = []
        while core.busy:
            events += core.step()
        assert gather(events, first)["a"] == whole


def test_resumed_tokens_that_end_the_answer_are_answered_at_once(make_core: MakeCore) -> None:
    core = make_core(max_running=1)
    core.submit(ask("busy", tokens=50))
    core.submit(ask("length", resumed=[97, 98], tokens=2))
    core.submit(ask("stop", resumed=[97, 98], stops=["b"]))
    ends = [event for event in core.step() if isinstance(event, Finished)]
    assert [(end.request_id, end.reason, end.output_tokens) for end in ends] == [
        ("length", "length", 2),
        ("stop", "stop", 2),
    ]


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(make_core: MakeCore) -> None:
    ids = run(make_core(), ask(tokens=12, **SAMPLED))["a"].ids
    stop = next(n for n in range(1, 12) if ids[n] not in ids[:n])
    answer = run(make_core(), ask(tokens=12, stop_ids=[ids[stop]], **SAMPLED))["a"]
    assert answer.ids == ids[:stop]
    assert isinstance(answer.end, Finished)
    assert (answer.end.reason, answer.end.output_tokens) == ("stop", stop)


def test_a_stop_string_ends_the_answer_where_it_begins(make_core: MakeCore) -> None:
    free = run(make_core(), ask(tokens=40, **SAMPLED))["a"]
    stop = free.text[8:10]
    answer = run(make_core(), ask(tokens=40, stops=[stop], **SAMPLED))["a"]
    assert answer.text == free.text[: free.text.index(stop)]
    assert isinstance(answer.end, Finished)
    assert answer.end.reason == "stop"
    assert answer.end.output_tokens == len(answer.ids) < 40


def test_ids_without_meaning_are_never_produced(core: EngineCore, tokenizer: Tokenizer) -> None:
    """The head has 32 rows more than there are tokens; at this temperature each is as likely as any other."""
    ids = run(core, *(ask(str(n), tokens=90, temperature=50, seed=n) for n in range(4)))
    drawn = {token_id for answer in ids.values() for token_id in answer.ids}
    assert max(drawn) < tokenizer.n_vocab
    assert len(drawn) > 200


def test_the_context_ends_an_answer(core: EngineCore) -> None:
    answers = run(core, ask("long", range(CONTEXT - 1)), ask("longer", range(90), tokens=500))
    ends = {name: answer.end for name, answer in answers.items()}
    assert isinstance(ends["long"], Finished)
    assert isinstance(ends["longer"], Finished)
    assert (ends["long"].reason, ends["long"].output_tokens) == ("length", 1)
    assert (ends["longer"].reason, ends["longer"].output_tokens) == ("length", 6)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "empty"),
        (range(CONTEXT), "96 tokens long; the model's context of 96"),
        ([1, 480], "outside the vocabulary of 480"),
        ([-1], "outside the vocabulary"),
    ],
    ids=["empty", "too long", "padding id", "negative id"],
)
def test_a_prompt_that_cannot_be_answered_fails_alone(core: EngineCore, prompt: list[int], says: str) -> None:
    answers = run(core, ask("good", tokens=3), ask("bad", prompt))
    end = answers["bad"].end
    assert isinstance(end, Failed)
    assert end.code == "invalid_prompt"
    assert says in end.message
    assert len(answers["good"].ids) == 3


def test_cancel_takes_effect_at_once_and_frees_the_blocks(make_core: MakeCore) -> None:
    core = make_core(max_running=1)
    for name in ("runs", "waits"):
        core.submit(ask(name, tokens=50))
    events = [event for _ in range(5) for event in core.step()]
    assert core.stats.free_blocks < core.stats.total_blocks
    for name in ("runs", "waits", "unknown"):
        core.cancel(name)
    assert core.stats.free_blocks == core.stats.total_blocks
    answers = gather([*events, *core.step()])
    assert [(a.end.reason, len(a.ids)) for a in answers.values() if isinstance(a.end, Finished)] == [
        ("cancelled", 5),
        ("cancelled", 0),
    ]
    assert not core.busy
    core.scheduler.check_integrity()


def test_deadlines_are_kept_running_and_waiting(make_core: MakeCore) -> None:
    clock = [100.0]
    core = make_core(max_running=1, now=lambda: clock[0])
    core.submit(ask("runs", tokens=50, deadline=101.0))
    core.submit(ask("waits", tokens=50, deadline=100.5))
    core.submit(ask("free", tokens=2))
    events = core.step()
    clock[0] = 100.5
    events += core.step()
    assert {event.request_id for event in events if isinstance(event, Finished)} == {"waits"}
    clock[0] = 101.0
    while core.busy:
        events += core.step()
    answers = gather(events)
    reasons = {
        name: answer.end.reason for name, answer in answers.items() if isinstance(answer.end, Finished)
    }
    assert reasons == {"runs": "deadline", "waits": "deadline", "free": "length"}
    assert len(answers["runs"].ids) == 2


def test_text_held_back_comes_with_the_end(core: EngineCore) -> None:
    """`é` is two bytes; the answer is cancelled between them, and after the beginning of a stop string."""
    core.submit(ask("half", resumed=b"ab\xc3", tokens=50))
    core.submit(ask("held", resumed=b"ab", stops=["bc"], tokens=50))
    core.cancel("half")
    core.cancel("held")
    assert [event.tail for event in core.step() if isinstance(event, Finished)] == ["\ufffd", "b"]


def test_nan_in_the_model_fails_only_the_request_that_meets_it(tiny_path: Path, make_core: MakeCore) -> None:
    """And what it has left in the cache is found by nobody."""
    broken = load_model(tiny_path, device="cpu", weights="dequantized")
    broken.wte[7] = torch.nan
    core = make_core(broken)
    answers = run(core, ask("good", [1, 2], tokens=8, stop_ids=[7]), ask("bad", [6, 7, 8, 9, 10, 11]))
    assert answers["bad"] == Answer(
        end=Failed(
            "bad",
            "server_error",
            "The model's arithmetic broke down on this request (NaN or infinity in its output).",
        )
    )
    assert isinstance(answers["good"].end, Finished)
    core.scheduler.check_integrity()
    assert core.scheduler.blocks.match("", [6, 7, 8, 9]) == []


def out_of_memory() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def python_out_of_memory() -> None:
    raise MemoryError


def out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def something_else() -> None:
    raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(
    ("accident", "says"),
    [
        (out_of_memory, "not enough memory"),
        (python_out_of_memory, "not enough memory"),
        (out_of_gpu_memory, "not enough memory"),
        (something_else, "failed on this request (RuntimeError)"),
    ],
)
def test_an_accident_fails_its_request_and_the_engine_goes_on(
    make_core: MakeCore, model: QwenModel, accident: Callable[[], None], says: str
) -> None:
    core = make_core(Struck(model, 300, accident))
    answers = run(core, ask("first", tokens=9), ask("unlucky", [1, 2, 300]), ask("third", tokens=9))
    end = answers["unlucky"].end
    assert isinstance(end, Failed)
    assert end.code == "server_error"
    assert says in end.message
    assert answers["first"].ids == answers["third"].ids == run(make_core(), ask(tokens=9))["a"].ids
    assert core.stats.free_blocks == core.stats.total_blocks


def test_a_lost_device_ends_the_process(make_core: MakeCore, model: QwenModel) -> None:
    def lose() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    core = make_core(Struck(model, 5, lose))
    core.submit(ask())
    with pytest.raises(torch.AcceleratorError):
        core.step()


class Struck:
    """The model; an accident happens to every pass over one certain token, before the head."""

    def __init__(self, model: QwenModel, token_id: int, accident: Callable[[], None]) -> None:
        self._model, self._token_id, self._accident = model, token_id, accident

    def forward(self, ids: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        logits = self._model.forward(ids, attend, rows)
        if self._token_id in ids:
            self._accident()
        return logits

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)


def test_the_next_turn_of_a_conversation_reads_only_what_is_new(make_core: MakeCore) -> None:
    """And it answers as if it had read all of it."""
    core = make_core()
    first = run(core, ask("first", range(30), tokens=10, salt="p"))["first"]
    again = [*range(30), *first.ids, 7, 8, 9]
    turn = ask("second", again, tokens=10, salt="p")
    computed = core.stats.prefill_tokens
    second = run(core, turn)["second"]
    assert isinstance(second.end, Finished)
    # 39 of the 40 tokens have keys and values, in blocks of 4.
    assert second.end.cached_tokens == core.stats.cached_tokens == 36
    assert core.stats.prefill_tokens - computed == 43 - 36
    assert second.ids == run(make_core(), turn)["second"].ids


def test_nobody_finds_what_another_project_has_asked(make_core: MakeCore) -> None:
    core = make_core()
    asked = [ask(name, LONG, tokens=2, salt=salt) for name, salt in (("a", "p"), ("b", "q"), ("c", "p"))]
    ends = [run(core, request)[request.request_id].end for request in asked]
    assert [end.cached_tokens for end in ends if isinstance(end, Finished)] == [0, 0, 36]


def test_a_prompt_known_to_the_last_token_is_still_answered(make_core: MakeCore) -> None:
    core = make_core()
    first, second = (run(core, ask(name, range(40), tokens=3))[name] for name in "ab")
    assert second.ids == first.ids
    assert isinstance(second.end, Finished)
    assert second.end.cached_tokens == 36, "the last block holds the token whose logits are wanted"


@pytest.mark.parametrize("kv_cache", ["auto", "int8"])
def test_a_cache_too_small_for_all_lets_all_finish(make_core: MakeCore, kv_cache: str) -> None:
    """One context of room for 12 answers that would fill 8: some are computed again, no token is lost or changed."""
    core = make_core(max_running=12, kv_cache_tokens=CONTEXT, kv_cache=kv_cache, deterministic=True)
    requests = [ask(str(n), range(n, n + 10), tokens=50, **(SAMPLED | {"seed": n})) for n in range(12)]
    answers = run(core, *requests)
    assert core.stats.preemptions > 5
    assert core.stats.free_blocks == core.stats.total_blocks
    for request in requests:
        alone = run(make_core(deterministic=True, kv_cache=kv_cache), request)[request.request_id]
        assert answers[request.request_id].ids == alone.ids
        assert len(alone.ids) == 50


def test_a_cache_smaller_than_the_context_bounds_the_answer(make_core: MakeCore) -> None:
    core = make_core(kv_cache_tokens=40)
    answers = run(core, ask("fits", range(30), tokens=80), ask("does not", range(40)))
    assert len(answers["fits"].ids) == 10
    end = answers["does not"].end
    assert isinstance(end, Failed)
    assert "context of 40" in end.message


def test_the_counters_add_up(make_core: MakeCore) -> None:
    core = make_core(max_running=2)
    for name in "abc":
        core.submit(ask(name, range(20), tokens=5, salt=name))
    core.step()
    assert (core.stats.running, core.stats.waiting, core.stats.steps) == (1, 2, 1)
    while core.busy:
        core.step()
    stats = core.stats
    assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.total_blocks)
    assert (stats.prefill_tokens, stats.decode_tokens, stats.cached_tokens) == (60, 3 * 4, 0)
    assert 0 < stats.host_ms_per_step < 1000 * stats.device_seconds


def test_eight_bits_are_near_enough(make_core: MakeCore, model: QwenModel) -> None:
    """What the rounding of keys and values does to a logit, against the spread of the logits (about 2)."""
    ids = torch.arange(80)
    logits = {}
    for kind in ("auto", "int8"):
        seen: list[Tensor] = []
        core = make_core(Recorded(model, seen), kv_cache=kind, step_tokens=7)
        run(core, ask(prompt=ids.tolist(), tokens=1))
        logits[kind] = seen[-1]
    worst = float((logits["int8"] - logits["auto"]).abs().max())
    assert 0 < worst < 0.05


class Recorded(Struck):
    """The model, keeping the logits that it gave."""

    def __init__(self, model: QwenModel, seen: list[Tensor]) -> None:
        super().__init__(model, -1, lambda: None)
        self._seen = seen

    def forward(self, ids: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        self._seen.append(super().forward(ids, attend, rows))
        return self._seen[-1]


def test_a_clock_that_is_set_ends_no_answer(make_core: MakeCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are held against a clock that nobody sets; a unix time in its place would be over at once."""
    core = make_core()
    core.submit(ask("runs", tokens=4, deadline=time.monotonic() + 600))
    events = core.step()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    while core.busy:
        events += core.step()
    end = gather(events)["runs"].end
    assert isinstance(end, Finished)
    assert end.reason == "length"

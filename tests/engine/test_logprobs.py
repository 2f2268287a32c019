"""Log-probabilities, penalties and bias: the model's own numbers, and the same ones wherever an answer is cut."""

from collections.abc import Sequence

import pytest
import torch

from tests.engine.answers import SAMPLED, Answer, ask, gather, run
from tests.engine.conftest import CONTEXT, MakeCore
from tests.model.reader import Reader
from worker.engine.core import EngineCore
from worker.engine.request import Finished, TokenLogprobs
from worker.engine.sampler import NonFiniteLogits, Row, Scored, adjust, sample
from worker.engine.scores import score
from worker.model.qwen import QwenModel
from worker.model.tokenizer import Tokenizer

NOTHING = torch.tensor([], dtype=torch.int64)
LONG = tuple(range(3, 43))
ALL = SAMPLED | {
    "presence_penalty": 0.7,
    "frequency_penalty": 0.4,
    "logit_bias": ((9, 3.0), (70, -100.0)),
    "logprobs": 3,
}


def expected(model: QwenModel, ids: list[int], n_vocab: int) -> torch.Tensor:
    """Row p: the log-probabilities of what follows position p."""
    return Reader(model).read(torch.tensor(ids))[:, :n_vocab].double().log_softmax(1)


def same(found: TokenLogprobs, row: torch.Tensor, token_id: int, count: int) -> None:
    assert found.chosen == pytest.approx(float(row[token_id]), abs=1e-4)
    values, ids = torch.topk(row, count)
    assert [token for token, _ in found.top] == ids.tolist()
    assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-4)


def close(
    found: Sequence[TokenLogprobs | None] | None, wanted: Sequence[TokenLogprobs | None] | None
) -> None:
    """Equal but for the rounding of products whose rows were cut into other steps."""
    assert found is not None
    assert wanted is not None
    assert [row is None for row in found] == [row is None for row in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        if ours is not None and theirs is not None:
            assert ours.chosen == pytest.approx(theirs.chosen, abs=1e-4)
            assert [value for _, value in ours.top] == pytest.approx(
                [value for _, value in theirs.top], abs=1e-4
            )


def test_they_are_the_models_own_whatever_the_request_does_to_the_choice(
    core: EngineCore, model: QwenModel, tokenizer: Tokenizer
) -> None:
    answer = run(core, ask(prompt=LONG, tokens=20, **ALL))["a"]
    rows = expected(model, [*LONG, *answer.ids], tokenizer.n_vocab)
    assert len(answer.logprobs) == 20
    for place, found in enumerate(answer.logprobs):
        same(found, rows[len(LONG) - 1 + place], answer.ids[place], 3)


def test_they_change_no_answer(make_core: MakeCore) -> None:
    silent = run(make_core(), ask(tokens=20, **ALL | {"logprobs": None}))["a"]
    told = run(make_core(), ask(tokens=20, **ALL | {"logprobs": 0}))["a"]
    assert told.ids == silent.ids
    assert silent.logprobs == []
    assert all(found.top == () for found in told.logprobs)


def test_an_answer_resumed_anywhere_has_the_same_penalties_and_log_probabilities(make_core: MakeCore) -> None:
    whole = run(make_core(), ask(tokens=16, **ALL))["a"]
    for cut in range(len(whole.ids) + 1):
        core = make_core()
        core.submit(ask(tokens=16, resumed=whole.ids[:cut], **ALL))
        events = []
        while core.busy:
            events += core.step()
        first = Answer(whole.ids[:cut], whole.pieces[:cut], whole.logprobs[:cut])
        again = gather(events, {"a": first})["a"]
        assert (again.ids, again.pieces) == (whole.ids, whole.pieces)
        for ours, theirs in zip(again.logprobs, whole.logprobs, strict=True):
            assert ours.chosen == pytest.approx(theirs.chosen, abs=1e-4)


@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize("step_tokens", [7, 64])
def test_the_prompt_is_scored_token_by_token(
    make_core: MakeCore, model: QwenModel, tokenizer: Tokenizer, tokens: int, step_tokens: int
) -> None:
    core = make_core(step_tokens=step_tokens)
    run(core, ask(prompt=LONG, tokens=1))  # its keys are in the cache now: they must be computed again
    answer = run(core, ask(prompt=LONG, tokens=tokens, prompt_logprobs=2))["a"]
    assert isinstance(answer.end, Finished)
    assert (answer.end.reason, answer.end.output_tokens) == ("length", tokens)
    told = answer.end.prompt_logprobs
    assert told is not None
    assert told[0] is None
    rows = expected(model, list(LONG), tokenizer.n_vocab)
    for place, found in enumerate(told[1:]):
        assert found is not None
        same(found, rows[place], LONG[place + 1], 2)
    assert len(told) == len(LONG)


def test_a_prompt_is_scored_for_an_answer_that_was_complete_already(make_core: MakeCore) -> None:
    whole = run(make_core(), ask(prompt=LONG, tokens=4, prompt_logprobs=1))["a"]
    again = run(make_core(), ask(prompt=LONG, tokens=4, resumed=whole.ids, prompt_logprobs=1))["a"]
    assert isinstance(whole.end, Finished)
    assert isinstance(again.end, Finished)
    assert again.ids == []
    assert again.end.output_tokens == 4
    close(again.end.prompt_logprobs, whole.end.prompt_logprobs)


def test_a_prompt_that_lost_its_memory_in_the_middle_is_told_once(make_core: MakeCore) -> None:
    """Two answers that do not fit together: the younger gives up its blocks and is read again."""
    core = make_core(kv_cache_tokens=CONTEXT, step_tokens=9)
    older = ask("older", range(40), tokens=45)
    younger = ask("younger", range(30, 70), tokens=5, prompt_logprobs=1)
    answers = run(core, older, younger)
    alone = run(make_core(), ask("younger", range(30, 70), tokens=5, prompt_logprobs=1))["younger"]
    end, other = answers["younger"].end, alone.end
    assert isinstance(end, Finished)
    assert isinstance(other, Finished)
    assert end.prompt_logprobs is not None
    assert len(end.prompt_logprobs) == 40
    close(end.prompt_logprobs, other.prompt_logprobs)


def test_no_answer_at_all_may_be_asked_for(core: EngineCore) -> None:
    answer = run(core, ask(tokens=0))["a"]
    assert isinstance(answer.end, Finished)
    assert (answer.end.reason, answer.ids) == ("length", [])


def test_penalties_count_the_answer_alone() -> None:
    logits = torch.zeros(1, 6)
    how = ask(presence_penalty=1.0, frequency_penalty=0.25).sampling
    scores = adjust(logits, [Row(how, 4, torch.tensor([5, 5, 1, 1, 1, 2]), torch.tensor([1, 1, 1, 2]))])
    assert scores[0].tolist() == [0.0, -1.75, -1.25, 0.0, 0.0, 0.0]
    assert logits.tolist() == [[0.0] * 6]  # what log-probabilities are taken from


def test_a_bias_bans_or_forces_a_token() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(3))
    for bias, expected_ids in ((100.0, {7}), (-100.0, set(range(50)) - {7})):
        how = ask(temperature=2.0, logit_bias=((7, bias),)).sampling
        drawn = {sample(logits, [Row(how, n, NOTHING)], n_vocab=50)[0] for n in range(2000)}
        assert drawn == expected_ids


def test_a_bias_for_an_id_without_meaning_is_refused(core: EngineCore) -> None:
    end = run(core, ask(logit_bias=((480, 1.0),)))["a"].end
    assert end is not None
    assert not isinstance(end, Finished)
    assert "bias names ids outside the vocabulary of 480" in end.message


def test_of_equals_the_lower_ids_are_told_and_padding_is_not_counted() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 99.0]])
    (found,) = score(logits, [0], 2, n_vocab=4)
    assert [token for token, _ in found.top] == [1, 2]
    total = torch.logsumexp(torch.tensor([1.0, 3.0, 3.0, 3.0]), 0).item()
    assert found.chosen == pytest.approx(1 - total, abs=1e-5)


def test_a_row_with_bad_logits_has_no_log_probability() -> None:
    how = ask(logprobs=2).sampling
    logits = torch.tensor([[1.0, 2.0], [1.0, float("nan")]])
    good, bad = sample(logits, [Row(how, 0, NOTHING)] * 2, n_vocab=2)
    assert isinstance(good, Scored)
    assert isinstance(bad, NonFiniteLogits)


@pytest.mark.parametrize(
    ("extra", "plain"),
    [
        ({}, True),
        (SAMPLED, True),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": 0.1}, False),
        ({"logit_bias": ((1, 1.0),)}, False),
        ({"logprobs": 0}, False),
        ({"prompt_logprobs": 0}, False),
    ],
)
def test_plain_says_whether_anything_more_is_asked_for(extra: dict[str, float], plain: bool) -> None:
    assert ask(**extra).sampling.plain is plain

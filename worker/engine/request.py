"""What goes into the engine and what comes out of it: plain values, no torch.

A request is a prompt as token ids, the rules for sampling its answer, and the tokens that an earlier attempt
already produced. Its life is told in events: any number of `Tokens`, then exactly one `Finished` or `Failed`.

The text of an answer is ``"".join(pieces of all its tokens) + tail`` and a function of its token ids alone.
So an attempt that resumes derives the same text: it emits nothing for the resumed tokens, and its first
`Tokens` has ``index == len(resumed_ids)``.
"""

import math
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
FailureCode = Literal["invalid_prompt", "server_error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen, and when the answer ends. `ValueError` for values without meaning.

    temperature         0 takes the most probable token; above 0 the logits are divided by it.
    top_p               keep the smallest set of tokens with at least this probability; 1 keeps all.
    top_k               keep this many tokens; 0 keeps all.
    repetition_penalty  1 is off; applied once to each id that stands in the prompt or the answer.
    seed                with the position in the answer it fixes the noise; taken modulo 2**64.
    max_new_tokens      length of the answer, resumed tokens included.
    stop_token_ids      the answer ends before such a token.
    stop_strings        the answer ends before the first of these in its text.
    presence_penalty    taken from the logit of each id that stands in the answer, once; 0 is off.
    frequency_penalty   taken from it as often as the id stands in the answer; 0 is off.
    logit_bias          (id, what is added to its logit) pairs.
    logprobs            how many alternatives are told with each token's log-probability; None tells neither.
    prompt_logprobs     the same for the tokens of the prompt, told with `Finished`.
    """

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def plain(self) -> bool:
        """Whether temperature, top-p, top-k and repetition penalty are all there is to the choice of a token."""
        return not self.adjusts and self.logprobs is None and self.prompt_logprobs is None

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed by more than the repetition penalty."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or bool(self.logit_bias)

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature",
            "0 or more",
            self.temperature,
        )
        _require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _require(self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        _require(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            "above 0",
            self.repetition_penalty,
        )
        _require(self.max_new_tokens >= 0, "max_new_tokens", "0 or more", self.max_new_tokens)
        _require("" not in self.stop_strings, "stop_strings", "non-empty strings", self.stop_strings)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(math.isfinite(value), name, "finite", value)
        finite = all(math.isfinite(bias) for _, bias in self.logit_bias)
        _require(finite, "logit_bias", "finite numbers", self.logit_bias)
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            _require(count is None or count >= 0, name, "0 or more", count)


def _require(holds: bool, name: str, allowed: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, not {value!r}")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to generate. `request_id` is unique among the requests in flight.

    Prompts that begin alike are read once among the requests of one `cache_salt`, and only among them: the time to
    the first token tells nobody what others have asked.

    `grammar` is what the answer must look like, in llguidance's form of Lark; it then ends where the grammar does, or
    where the model ends it and the grammar allows that.

    Tokens of an answer that is not `followed` are told a little later, several at a time.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    resumed_ids: tuple[int, ...]  # tokens of this answer that an earlier attempt produced
    sampling: SamplingParams
    deadline: float | None  # time.monotonic, which the processes of a machine share; None: no limit
    cache_salt: str = ""
    grammar: str | None = None
    followed: bool = True


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How probable the model held a token, and the most probable ones at its place.

    Natural logarithms of the softmax of the model's own logits over the whole vocabulary, whatever the request has
    for penalties, bias, temperature, top-k and top-p: the token that was chosen need not be among the best. OpenAI's
    API does not say which it shows; these are what evaluations need, and the same whatever is sampled.

    top  (id, log-probability) pairs, best first, of equals the lower id first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of an answer.

    `index` is the position in the answer of the first of them. There is one piece a token: "" when the token
    completed no character, or when its text is held back because it may become a stop string. The stop token
    itself never appears. `logprobs` has one entry a token where the request asks for them.
    """

    request_id: str
    index: int
    token_ids: list[int]
    pieces: list[str]
    logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is over. `tail` is the text that was held back when it ended, to be appended to the pieces.

    `output_tokens` counts resumed tokens and not the stop token; `cached_tokens` is the part of the prompt
    that was not computed again. `prompt_logprobs`, where asked for, has one entry for each token of the prompt:
    None for the first, which nothing stands before. `stopped_by` is the stop token that ended the answer, where
    log-probabilities are asked for.
    """

    request_id: str
    reason: FinishReason
    tail: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    stopped_by: tuple[int, TokenLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The request could not be answered; `message` may be shown to the caller."""

    request_id: str
    code: FailureCode
    message: str


Event = Tokens | Finished | Failed

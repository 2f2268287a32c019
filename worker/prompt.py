"""From stored items and a request's settings to what the engine is asked: prompt ids and sampling rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from storage import react
from storage.history import Said
from storage.models import Json
from worker import react as functions
from worker.engine.request import SamplingParams
from worker.model.chat import Message, Prompt, render
from worker.model.config import GenerationDefaults
from worker.model.errors import PromptTooLong
from worker.model.tokenizer import Tokenizer

T = TypeVar("T")

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class HistoryTooLong(Exception):
    """The whole history does not fit, and the caller asked that none of it is left out."""

    def __init__(self, dropped_messages: int) -> None:
        super().__init__(
            f"The oldest {dropped_messages} messages of the history do not fit the model's context, "
            'and "truncation" is "disabled". Use "auto" to leave the oldest out.'
        )


class Unusable(Exception):
    """The request names what the model does not have; `cause` says in one word what is wrong."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def build(
    items: Sequence[Said],
    request: Json,
    *,
    tokenizer: Tokenizer,
    defaults: GenerationDefaults,
    context_length: int,
) -> Prompt:
    """Render the items (oldest first) with the request's `instructions` as the first system message.

    Where functions are offered their description stands before the newest user message, and where the items end with
    what functions returned, the answer goes on behind it.

    A request with a `prompt` has no items: its text, or its token ids, are the prompt as they are.

    Raises:
        Unusable: a token id has no meaning.
        worker.model.errors.PromptTooLong: system and query alone leave no room for an answer.
        HistoryTooLong: some of the history would be left out, against the request's `truncation`.
    """
    if request.get("prompt") is not None:
        return _raw(request, tokenizer, context_length)
    messages, begun = _messages(items, tokenizer)
    if react.offered(request):
        messages = functions.instructed(messages, request["tools"])
    elif begun:
        begun += functions.KNOWS.rstrip() + "\n"  # the text is the answer, without a space before it
    if request.get("instructions") is not None:
        messages.insert(0, Message("system", request["instructions"]))
    prompt = render(
        messages,
        tokenizer=tokenizer,
        context_length=context_length,
        window=defaults.max_window_size,
        answer_tokens=_given(request, "max_output_tokens", defaults.max_new_tokens),
        begun=begun,
    )
    if prompt.dropped_messages and request.get("truncation") == "disabled":
        raise HistoryTooLong(prompt.dropped_messages)
    return prompt


def sampling(
    request: Json, prompt: Prompt, seed: int, *, tokenizer: Tokenizer, defaults: GenerationDefaults
) -> SamplingParams:
    """Return the rules for an answer: what the request says, else what the checkpoint's authors recommend.

    Raises:
        Unusable: `logit_bias` names a token id without a meaning.
    """
    logprobs = request.get("logprobs")
    return SamplingParams(
        temperature=_given(request, "temperature", defaults.temperature if defaults.do_sample else 0.0),
        top_p=_given(request, "top_p", defaults.top_p),
        top_k=_given(request, "top_k", defaults.top_k),
        repetition_penalty=_given(request, "repetition_penalty", defaults.repetition_penalty),
        seed=seed,
        max_new_tokens=prompt.answer_tokens,
        # All three end a turn: a model that begins the next one by itself must be stopped there too.
        stop_token_ids=(tokenizer.im_end, tokenizer.im_start, tokenizer.endoftext),
        stop_strings=tuple(_given(request, "stop", ())),
        presence_penalty=_given(request, "presence_penalty", 0.0),
        frequency_penalty=_given(request, "frequency_penalty", 0.0),
        logit_bias=_biases(request.get("logit_bias") or {}, tokenizer),
        logprobs=logprobs,
        prompt_logprobs=logprobs if request.get("echo") else None,
    )


def _raw(request: Json, tokenizer: Tokenizer, context_length: int) -> Prompt:
    prompt = request["prompt"]
    # Where nothing stands before, the model goes on from the end of a text.
    ids = (tokenizer.encode(prompt) or [tokenizer.endoftext]) if isinstance(prompt, str) else list(prompt)
    if max(ids) >= tokenizer.n_vocab:
        raise Unusable(
            "invalid_token_id", f"The prompt holds ids outside the vocabulary of {tokenizer.n_vocab} tokens."
        )
    room = context_length - len(ids)
    if room < 1:
        raise PromptTooLong(len(ids), context_length)
    return Prompt(ids=ids, answer_tokens=min(request["max_output_tokens"], room), dropped_messages=0)


def _biases(given: Json, tokenizer: Tokenizer) -> tuple[tuple[int, float], ...]:
    biases = tuple((int(token_id), float(bias)) for token_id, bias in given.items())
    if any(token_id >= tokenizer.n_vocab for token_id, _ in biases):
        raise Unusable(
            "invalid_logit_bias", f"It names ids outside the vocabulary of {tokenizer.n_vocab} tokens."
        )
    return biases


def _given(request: Json, name: str, default: T) -> T:
    value: T | None = request.get(name)
    return default if value is None else value


def _messages(items: Sequence[Said], tokenizer: Tokenizer) -> tuple[list[Message], str]:
    """Return the messages that are complete, and the beginning of the assistant's that is not.

    What a function returned stands behind its call, wherever its item does.
    """
    messages: list[Message] = []
    open_text = ""  # calls and what they returned, behind which nothing was said yet
    outputs = {item.body["call_id"]: item.body for item in items if _kind(item) == "function_call_output"}
    for item in items:
        kind = _kind(item)
        if kind == "function_call":
            output = outputs.pop(item.body["call_id"], None)
            open_text += functions.call(item.body) + (functions.observation(output) if output else "")
        elif kind == "function_call_output":
            if outputs.pop(item.body["call_id"], None) is not None:  # its call is not among the items
                open_text += functions.observation(item.body)
        else:
            text = _text(item)
            role = ROLES[item.body["role"]]
            if open_text and role == "assistant":
                messages.append(Message(role, open_text + functions.answer(text)))
            else:
                if open_text:
                    messages.append(Message("assistant", open_text.rstrip("\n")))
                messages.append(Message(role, text, _generated(item, text, tokenizer)))
            open_text = ""
    return messages, open_text


def _kind(item: Said) -> str:
    return str(item.body.get("type", "message"))


def _text(item: Said) -> str:
    return "".join(part["text"] for part in item.body["content"])


def _generated(item: Said, text: str, tokenizer: Tokenizer) -> list[int] | None:
    """Return the tokens of an answer, unless they spell another text: it was cut at a stop string, or the model has
    another vocabulary than the one that answered.
    """
    ids = item.token_ids
    if not ids or item.body["role"] != "assistant" or max(ids) >= tokenizer.endoftext:
        return None
    return ids if tokenizer.decode(ids) == text else None

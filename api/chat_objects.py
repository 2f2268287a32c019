"""The ChatCompletion object from the answers of a call. Every key is always there, null where nothing is known."""

from __future__ import annotations

from collections.abc import Sequence

from api import chat_tools
from api.choices import Choice
from storage.models import Json

FINISH_REASONS = {"completed": "stop", "incomplete": "length"}


def completion(choices: Sequence[Choice]) -> Json:
    """Return the object of an ended call."""
    first = choices[0].row
    return {
        "id": first.id,
        "object": "chat.completion",
        "created": int(first.created_at),
        "model": first.request["model"],
        "choices": [_choice(choice) for choice in choices],
        "usage": usage([choice.row.usage or {} for choice in choices]),
        "service_tier": first.tier,
        "system_fingerprint": None,
        "metadata": first.request["metadata"],
    }


def usage(each: Sequence[Json], answers_per_prompt: int | None = None) -> Json:
    """Return what the answers used together: each prompt once, and every answer.

    Args:
        each: the `usage` of every answer, in order.
        answers_per_prompt: how many in a row share a prompt; None: all of them do.
    """
    prompts = each[:: answers_per_prompt or len(each)]
    prompt_tokens = sum(one["input_tokens"] for one in prompts)
    completion_tokens = sum(one["output_tokens"] for one in each)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(one["input_tokens_details"]["cached_tokens"] for one in prompts),
            "cache_write_tokens": 0,
        },
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def logprobs(tokens: Sequence[Json] | None) -> Json | None:
    """Return a choice's `logprobs`; `tokens` as `storage.scores` shows them, None where nobody asked."""
    return None if tokens is None else {"content": list(tokens), "refusal": None}


def finish_reason(status: str, *, calls: bool = False) -> str:
    """Return why an answer is over; `calls`: is it a call of a function?"""
    return "tool_calls" if calls and status == "completed" else FINISH_REASONS[status]


def _choice(choice: Choice) -> Json:
    (item,) = choice.output
    if item.body["type"] == "function_call":
        return {
            "index": choice.row.choice,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "tool_calls": [chat_tools.shown(item.body)],
            },
            "logprobs": None,
            "finish_reason": finish_reason(choice.row.status, calls=True),
        }
    (part,) = item.body["content"]
    asked = choice.row.request["logprobs"] is not None
    return {
        "index": choice.row.choice,
        "message": {"role": "assistant", "content": part["text"], "refusal": None, "annotations": []},
        "logprobs": logprobs(part["logprobs"] if asked else None),
        "finish_reason": finish_reason(choice.row.status),
    }

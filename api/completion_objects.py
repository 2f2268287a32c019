"""The Completion object from the answers of a call, and the list of tokens that its log-probabilities are."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence

from api import chat_objects
from api.choices import Choice
from storage import scores
from storage.models import Json

# Control tokens are listed by their names, and no text is theirs. No token of text is written so.
CONTROL = re.compile(r"<\|(endoftext|im_start|im_end|extra_\d+)\|>")


def completion(choices: Sequence[Choice], answers_per_prompt: int) -> Json:
    """Return the object of an ended call."""
    first = choices[0].row
    return {
        "id": first.id,
        "object": "text_completion",
        "created": int(first.created_at),
        "model": first.request["model"],
        "choices": [_choice(choice) for choice in choices],
        "usage": chat_objects.usage([choice.row.usage or {} for choice in choices], answers_per_prompt),
        "system_fingerprint": None,
    }


class TokenList:
    """Tokens one after the other with the place of each in the text, from its beginning on."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def shown(self, tokens: Iterable[Json]) -> Json:
        """Return the `logprobs` of tokens, as `scores.shown` has them, that follow those of earlier calls.

        A token that is no whole text is listed by its bytes, as ``bytes:\\\\xe5``.
        """
        listed: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            listed["tokens"].append(_name(token))
            listed["token_logprobs"].append(token["logprob"])
            listed["top_logprobs"].append(_alternatives(token))
            listed["text_offset"].append(self._offset)
            if not CONTROL.fullmatch(token["token"]):
                self._offset += len(self._decoder.decode(bytes(token["bytes"])))
        return listed


def prompt_tokens(raw: Json) -> list[Json]:
    """Return the tokens of an echoed prompt; `raw` is what the answer's item holds of it."""
    return scores.shown(raw["prompt_logprobs"] or [])


def stop_tokens(raw: Json) -> list[Json]:
    """Return the control token that ended the answer, if one did."""
    return scores.shown(raw["stop_logprobs"] or [])


def _choice(choice: Choice) -> Json:
    (message,) = choice.output
    (part,) = message.body["content"]
    raw: Json = message.body["raw"]
    logprobs = None
    if choice.row.request["logprobs"] is not None:
        tokens = [*prompt_tokens(raw), *part["logprobs"], *stop_tokens(raw)]
        logprobs = TokenList().shown(tokens)
    return {
        "index": choice.row.choice,
        "text": (raw["prompt"] if choice.row.request["echo"] else "") + part["text"],
        "logprobs": logprobs,
        "finish_reason": chat_objects.FINISH_REASONS[choice.row.status],
    }


def _name(token: Json) -> str:
    spelling = bytes(token["bytes"])
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)


def _alternatives(token: Json) -> dict[str, float] | None:
    """Return the most probable tokens and the token itself; None for the first of a prompt, which nothing precedes."""
    if token["logprob"] is None:
        return None
    return {_name(each): each["logprob"] for each in (*token["top_logprobs"], token)}

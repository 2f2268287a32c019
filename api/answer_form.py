"""What an answer may be, checked as a whole: its format, the functions it may call, and what these exclude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from api import structured, tools
from api.errors import BadRequest
from storage import react
from storage.models import Json


@dataclass(frozen=True, slots=True)
class Form:
    """What a request asks for: `text`, `tools` and `tool_choice` as they are stored; None where it says nothing."""

    text: Json | None
    tools: list[Json] | None
    choice: str | Json | None
    stop: Sequence[str] | None
    logprobs: bool

    @property
    def stored(self) -> Json:
        """What of it the worker and the objects shown need to know."""
        return {
            "text": self.text or structured.PLAIN,
            "tools": self.tools or [],
            "tool_choice": self.choice or "auto",
        }


@dataclass(frozen=True, slots=True)
class Words:
    """What an endpoint calls things.

    Attributes:
        schema: the parameter of the answer's schema.
        inner: what stands between a tool and its parameters.
        logprobs: the parameter that asks for log-probabilities.
    """

    schema: str
    inner: str
    logprobs: str


RESPONSES = Words("text.format.schema", "", "include")
CHAT = Words("response_format.json_schema.schema", ".function", "logprobs")


def check(form: Form, words: Words) -> None:
    """Compile all schemas, and see that nothing asked for excludes another thing.

    Raises:
        BadRequest: the first thing that is wrong.
    """
    asked = (form.text or structured.PLAIN)["format"]
    if asked["type"] == "json_schema":
        structured.check_schema(asked["schema"], words.schema)
    tools.check(form.tools, form.choice, words.inner)
    offered = react.offered(form.stored)
    if (offered or asked["type"] != "text") and form.stop:
        raise _excluded("stop", "it could cut the JSON that a format or a function's arguments are")
    if offered and form.logprobs:
        raise _excluded(
            words.logprobs, "there are no log-probabilities of an answer that may be a call of 'tools'"
        )


def _excluded(param: str, why: str) -> BadRequest:
    return BadRequest(f"Invalid '{param}': {why}.", param=param, code="mutually_exclusive_parameters")

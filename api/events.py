"""The event log of an answer: a pure function of what is stored of it.

    0  response.created        the response as it was when it was accepted
    1  response.queued         the same
    2  response.in_progress    once a worker has taken it
    3  response.output_item.added
    4  response.content_part.added
    5  response.output_text.delta, one for each token that released text
    …  and one for the text that only the answer's end released
       response.output_text.done, response.content_part.done, response.output_item.done
       response.completed | incomplete | failed | cancelled

An answer that calls a function has `response.function_call_arguments.delta` and `.done` instead of the events of texts
and parts. Where functions are offered, event 3 comes when it is clear which of the two an answer is, and what stands
before (`storage.react`) has no events.

Events 3 and 4 come with the first delta, or with the end of an answer without text. A response that failed or was
cancelled keeps the deltas that came before, and its last event follows them at once; one that no worker ever took has
no event 2. So the log only grows, whoever reads it and whenever: an event that was seen keeps its number and its
bytes, before, during and after the run, through every attempt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from api.event_items import ITEM_DONE, Call, Message, Seen
from storage import react
from storage.models import Json
from storage.responses import TERMINAL
from storage.scores import Entry

# What the response's own first events cannot know yet; everything else of it never changes.
UNKNOWN_YET: Json = {
    "completed_at": None,
    "output": [],
    "error": None,
    "incomplete_details": None,
    "usage": None,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of an answer.

    Attributes:
        shown: the Response object; of an open one in any state, of an ended one with its output.
        item_id: the id of its output message, fixed before it exists.
        started: has a worker ever taken it?
        deltas: the text of its tokens in order, without empty ones, and the tail that its end released.
        logprobs: for each delta the entries (`storage.scores`) of the tokens it came from, where they were asked for.
    """

    shown: Json
    item_id: str
    started: bool
    deltas: Sequence[str]
    logprobs: Sequence[Sequence[Entry]] = ()

    @property
    def ended(self) -> bool:
        """Is its log complete?"""
        return self.shown["status"] in TERMINAL


def after(answer: Answer, number: int) -> Iterator[Json]:
    """Return the events behind number `number` that exist so far; -1 asks for all of them."""
    item = item_of(answer)
    head = _head(answer, item)
    end = _end(answer, item)
    deltas = item.count
    for at in range(number + 1, len(head) + deltas + len(end)):
        if at < len(head):
            event = head[at]
        elif at < len(head) + deltas:
            event = item.delta(at - len(head))
        else:
            event = end[at - len(head) - deltas]
        yield {**event, "sequence_number": at}


def error(code: str, message: str, number: int) -> Json:
    """Return the event that says why a stream cannot go on. It is not of the log and carries no number of its own.

    Args:
        number: the number of the last event that was sent, so that a client that resumes behind it misses none.
    """
    return {"type": "error", "code": code, "message": message, "param": None, "sequence_number": number}


def item_of(answer: Answer) -> Message | Call:
    """Return what the answer is, as far as that is clear; of a message in no clear form nothing is seen."""
    count = len(answer.deltas)  # of a list that may grow while this is read
    if not react.offered(answer.shown):
        return Message(answer.item_id, Seen(answer.deltas, count), answer.logprobs, begun=count > 0)
    found = react.opened(answer.deltas)
    if found is None:
        return Message(answer.item_id, Seen((), 0), (), begun=False)
    seen = Seen(answer.deltas, count, found)
    if found.name is None:
        return Message(answer.item_id, seen, (), begun=True)
    return Call(answer.item_id, found.name, seen)


def _head(answer: Answer, item: Message | Call) -> list[Json]:
    queued = {**answer.shown, **UNKNOWN_YET, "status": "queued"}
    head = [_lifecycle("created", queued), _lifecycle("queued", queued)]
    if answer.started:
        head.append(_lifecycle("in_progress", {**queued, "status": "in_progress"}))
    if item.begun or _is_answered(answer):
        head += item.head()
    return head


def _end(answer: Answer, item: Message | Call) -> list[Json]:
    if not answer.ended:
        return []
    last = _lifecycle(answer.shown["status"], answer.shown)
    if not _is_answered(answer):
        return [last]
    return [*item.end(), {"type": ITEM_DONE, "output_index": 0, "item": answer.shown["output"][0]}, last]


def _is_answered(answer: Answer) -> bool:
    return answer.shown["status"] in ("completed", "incomplete")


def _lifecycle(name: str, response: Json) -> Json:
    return {"type": f"response.{name}", "response": response}

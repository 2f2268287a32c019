"""A reader of event streams that sees their bytes: events, comments and how they end."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import httpx

from tests.api.fake_worker import until


class Reader:
    """Reads a stream from a thread of its own, until its end or `close`."""

    def __init__(
        self, http: httpx.Client, response_id: str = "", after: int | None = None, body: Any = None
    ) -> None:
        """Open a stream: of the response with this id, or of the one that a POST of `body` makes."""
        self.events: list[str] = []  # the data of each event, as it came
        self.comments: list[str] = []
        self.done = False
        self.headers = httpx.Headers()
        if body is None:
            query = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
            request = http.build_request("GET", f"/v1/responses/{response_id}", params=query)
        else:
            request = http.build_request("POST", "/v1/responses", **body)
        self._answer = http.send(request, stream=True)
        self.headers = self._answer.headers
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @property
    def types(self) -> list[str]:
        return [json.loads(event)["type"] for event in self.events]

    @property
    def numbers(self) -> list[int]:
        return [json.loads(event)["sequence_number"] for event in self.events]

    @property
    def text(self) -> str:
        shown = [json.loads(event) for event in self.events]
        return "".join(each["delta"] for each in shown if each["type"] == "response.output_text.delta")

    def has(self, count: int) -> None:
        """Wait until so many events have come."""
        until(lambda: len(self.events) >= count)

    def to_end(self, seconds: float = 20.0) -> list[str]:
        """Wait for the stream's end and return its events."""
        assert self.ended.wait(seconds), f"no end after {len(self.events)} events"
        self._thread.join()
        return self.events

    def close(self) -> None:
        """Go away."""
        self._answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        kind = ""
        try:
            for line in self._answer.iter_lines():
                if line.startswith(":"):
                    self.comments.append(line[1:].strip())
                elif line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: "):
                    data = line.removeprefix("data: ")
                    assert not self.done, "an event after [DONE]"
                    assert json.loads(data)["type"] == kind
                    self.events.append(data)
        except (httpx.ReadError, httpx.StreamError, httpx.RemoteProtocolError):
            pass  # closed, by either side
        finally:
            self._answer.close()
            self.ended.set()


def whole(http: httpx.Client, response_id: str, after: int | None = None) -> list[str]:
    """Return the events of a stream that ends with [DONE]."""
    reader = Reader(http, response_id, after)
    events = reader.to_end()
    assert reader.done
    return events

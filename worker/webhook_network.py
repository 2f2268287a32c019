"""The network below one webhook try: sockets go to checked addresses only, and one deadline stands over everything.

`CheckedNetwork` is what httpcore opens its connection with. It never looks a name up: it connects to the addresses
that `storage.egress` found and checked, while TLS keeps the host of the URL. Timeouts that httpcore passes down are
per read and thus no bound at all, a byte now and then renews them; each operation gets what is left of the try instead.
"""

import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore

from storage.egress import Target

MAX_ADDRESSES = 8  # of a host that has many; each gets a fair part of the time


class Progress:
    """How far one try has come: the time it has left, what it waits for, whether the receiver hung up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()
        self.doing = "looking up the host"
        self.hung_up = False

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning of the try."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Tell whether the deadline has passed."""
        return self.elapsed >= self.seconds

    def left(self, doing: str) -> float:
        """Note what is being done now and return the seconds it may take; raise TimeoutError when none are left."""
        self.doing = doing
        seconds = self.seconds - self.elapsed
        if seconds <= 0:
            raise TimeoutError
        return seconds


class CheckedNetwork(httpcore.NetworkBackend):
    """Opens the one connection of a try; raises OSError as the socket does (TimeoutError at the deadline)."""

    def __init__(self, target: Target, progress: Progress) -> None:
        self._target = target
        self._progress = progress

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first of the target's addresses that answers, in the resolver's order."""
        candidates = self._target.addresses[:MAX_ADDRESSES]
        failure = OSError(f"{host} has no address")
        for tried, address in enumerate(candidates):
            share = self._progress.left("connecting") / (len(candidates) - tried)
            try:
                sock = socket.create_connection((str(address), self._target.port), share)
            except OSError as error:
                failure = error
            else:
                return _Stream(sock, self._progress)
        raise failure


class _Stream(httpcore.NetworkStream):
    def __init__(self, sock: socket.socket, progress: Progress) -> None:
        self._socket = sock
        self._progress = progress

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(self._progress.left("waiting for the answer"))
        data = self._socket.recv(max_bytes)
        self._progress.hung_up = not data
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # Not sendall: on TLS it would start the time anew with each record.
        unsent = memoryview(buffer)
        while unsent:
            self._socket.settimeout(self._progress.left("sending"))
            try:
                unsent = unsent[self._socket.send(unsent) :]
            except TimeoutError:
                raise
            except OSError as error:
                # httpcore goes on to read: a receiver may refuse early and close before it has read everything.
                raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            self._socket.settimeout(self._progress.left("in the TLS handshake"))
            secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except BaseException:
            self.close()
            raise
        return _Stream(secured, self._progress)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's signature
        # httpcore asks for the negotiated protocol here; only HTTP/1.1 is ever offered.
        return None

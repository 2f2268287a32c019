"""Which URLs a webhook may go to: each is parsed once, here, and every address behind it is judged.

`check_url` is the one way from a caller's URL to something that may be connected to. The API calls it when a
URL is registered, the webhook worker at each try, because what a name resolves to changes. Whoever connects
must use the parts of the returned `Target` and its checked addresses, never the URL: two parsers that
disagree are a way in.
"""

import re
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal
from urllib.parse import urlsplit

from storage.addresses import Address, Network, carried, classify

__all__ = [
    "EgressPolicy",
    "Resolver",
    "Target",
    "UnresolvedHost",
    "UnsafeUrl",
    "check_url",
    "classify",
    "permitted",
    "system_resolver",
]

Resolver = Callable[[str], Sequence[Address]]
"""Every address of a host name; raises OSError (socket.gaierror) when there is none. May block."""

MAX_URL_LENGTH = 2048
DEFAULT_PORTS = {"http": 80, "https": 443}

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class UnsafeUrl(ValueError):
    """The URL may not be connected to; `reason` is a short phrase for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnresolvedHost(UnsafeUrl):
    """The host has no address at the moment, or none was found in time: unlike its parent, worth a retry."""


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What may be reached besides the public internet. An address in `allowed_networks` is never refused."""

    allowed_networks: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart, with the addresses that were checked (none when a name was not to be resolved)."""

    scheme: Literal["http", "https"]
    host: str
    """Lower case, no trailing dot, no brackets; an IPv4 address always as four decimal numbers."""
    port: int
    path: str
    """Path and query as sent in the request line; begins with a slash."""
    addresses: tuple[Address, ...]

    @property
    def host_header(self) -> str:
        """The value of `Host`: IPv6 in brackets, the port unless it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def permitted(address: Address, policy: EgressPolicy) -> bool:
    """Tell whether the policy's networks hold the address or, where it carries others, all it can lead to."""
    reached: tuple[Address, ...] = (address,)
    if isinstance(address, IPv6Address):
        form, inside = carried(address)
        # A router that knows nothing of ISATAP delivers by the prefix, so both readings must be allowed.
        reached = (address, *inside) if form == "ISATAP" else inside or (address,)
    return all(any(one in network for network in policy.allowed_networks) for one in reached)


def check_url(
    url: str,
    policy: EgressPolicy,
    *,
    resolve: bool = True,
    resolver: Resolver | None = None,
    timeout: float = 5.0,
) -> Target:
    """Take `url` apart, resolve its host once and check every address; raise UnsafeUrl if anything is wrong.

    With `resolve=False` a host name is only checked for its form (an address literal is always judged). The
    lookup blocks the calling thread, but no longer than `timeout` seconds.
    """
    scheme, host, port, path = _split(url)
    literal = _literal(host)
    if literal is not None:
        addresses: tuple[Address, ...] = (literal,)
    elif resolve:
        addresses = _resolve(host, resolver or system_resolver, timeout)
    else:
        addresses = ()
    for address in addresses:
        if not permitted(address, policy) and (reason := classify(address)):
            raise UnsafeUrl(f"address {address} is {reason}")
    return Target(scheme, host if literal is None else str(literal), port, path, addresses)


def system_resolver(host: str) -> list[Address]:
    """Ask the operating system, once, for all addresses of `host` in the order it would try them."""
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(sockaddr[0])) for *_, sockaddr in answers))


def _split(url: str) -> tuple[Literal["http", "https"], str, int, str]:
    """Return scheme, host without brackets or trailing dot, port, and path with query."""
    if len(url) > MAX_URL_LENGTH:
        raise UnsafeUrl(f"the URL is longer than {MAX_URL_LENGTH} characters")
    # Controls, spaces, backslashes and all that is not ASCII: parsers are known to disagree about them.
    if odd := next((c for c in url if not "!" <= c <= "~" or c == "\\"), None):
        raise UnsafeUrl(
            f"the URL holds the character {odd!a}: "
            "write the host in its ASCII (xn--) form and percent-encode the rest"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UnsafeUrl(f"not a valid URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise UnsafeUrl("the URL must begin with http:// or https://")
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    if "@" in parts.netloc:
        raise UnsafeUrl("a user name or password in the URL is not allowed")
    if port == 0:
        raise UnsafeUrl("port 0 is not a port: use 1 to 65535")
    host = _checked_host(parts.hostname or "", bracketed="[" in parts.netloc)
    query = f"?{parts.query}" if parts.query else ""
    return scheme, host, DEFAULT_PORTS[scheme] if port is None else port, (parts.path or "/") + query


def _checked_host(host: str, *, bracketed: bool) -> str:
    if bracketed:
        if "%" in host:
            raise UnsafeUrl("an address with a zone (%...) is not allowed")
        try:
            return str(IPv6Address(host))
        except ValueError:
            raise UnsafeUrl(f"[{host}] is not an IPv6 address") from None
    host = host.removesuffix(".")
    if not host:
        raise UnsafeUrl("the URL has no host")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise UnsafeUrl("the host is not a valid host name")
    return host


def _literal(host: str) -> Address | None:
    """Read an address in any spelling resolvers take (127.1, 0x7f000001, 0177.0.0.1); None for a name."""
    if ":" in host:
        return IPv6Address(host)
    if not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return None
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        raise UnsafeUrl(f"{host} is neither an IPv4 address nor a host name") from None


def _resolve(host: str, resolver: Resolver, timeout: float) -> tuple[Address, ...]:
    """Run `resolver` for at most `timeout` seconds.

    getaddrinfo cannot be interrupted, so it gets a daemon thread that is left behind when late: it ends by
    itself when the system's resolver gives up, and holds up neither the process's exit nor a shared pool.
    """
    answer: Future[Sequence[Address]] = Future()

    def look_up() -> None:
        try:
            answer.set_result(resolver(host))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=look_up, name=f"resolve {host}", daemon=True).start()
    try:
        addresses = tuple(answer.result(timeout))
    except TimeoutError:
        raise UnresolvedHost(f"the address of {host} was not found in {timeout:.1f} s") from None
    except OSError as error:
        raise UnresolvedHost(f"the host {host} has no address: {error.strerror or error}") from None
    if not addresses:
        raise UnresolvedHost(f"the host {host} has no address")
    return addresses

"""Our judgement of addresses beside that of the package `ssrfguard`, over a large generated set.

What we let through it lets through, without exception. Where we refuse more, one of the rules below says why.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from ssrfguard import DEFAULT_DENIED

from storage import addresses
from storage.addresses import Address, Network, carried, classify

SEED = 20261124
RANDOM_EACH = 10_000
IN_EACH_BLOCK = 40

V4_FORMS = ("::ffff:0:0", "64:ff9b::", "::", "::ffff:0:0:0", "2a00:1450::5efe:0:0", "2a00:1450::200:5efe:0:0")
IETF_V4, IETF_V6 = ip_network("192.0.0.0/24"), ip_network("2001::/23")
GLOBAL_UNICAST = ip_network("2000::/3")


def unwrapped(address: Address) -> Address:
    """The IPv4 address that a mapped or NAT64 address is another way to write."""
    if isinstance(address, IPv6Address):
        form, inside = carried(address)
        if form in ("IPv4-mapped", "NAT64"):
            return inside[0]
    return address


def form_of(address: Address) -> str:
    return carried(address)[0] if isinstance(address, IPv6Address) else ""


# Why we refuse what ssrfguard permits. The first rule that applies counts.
RULES: dict[str, Callable[[Address], bool]] = {
    "168.63.129.16 is a cloud's metadata service on a public address, which no registry knows": (
        lambda address: unwrapped(address) == ip_address("168.63.129.16")
    ),
    "192.0.0.9 and .10 are anycast services of the nearest network, no place for a webhook": (
        lambda address: unwrapped(address) in IETF_V4
    ),
    "6to4, Teredo and compatible addresses lead through relays that anybody may run": (
        lambda address: form_of(address) in ("6to4", "Teredo", "IPv4-compatible")
    ),
    "IPv4-translated addresses (::ffff:0:0:0/96) are for inside of a translator": (
        lambda address: form_of(address) == "IPv4-translated"
    ),
    "an ISATAP address is judged by the IPv4 address at its end": (
        lambda address: (
            form_of(address) == "ISATAP" and classify(carried(IPv6Address(address))[1][0]) is not None
        )
    ),
    "of 2001::/23 nothing is a host on the public internet, whatever its anycast parts": (
        lambda address: address in IETF_V6
    ),
    "outside 2000::/3 nothing has been handed out yet": (
        lambda address: address.version == 6 and address not in GLOBAL_UNICAST
    ),
}


def blocks() -> set[Network]:
    """Every block that either side knows, and the forms that carry IPv4 addresses."""
    ours: set[Network] = {network for network, _ in addresses._REFUSED}
    theirs: set[Network] = {block.network for block in DEFAULT_DENIED.blocks}
    return ours | theirs | {ip_network("64:ff9b::/96"), ip_network("::ffff:0:0:0/96"), GLOBAL_UNICAST}


def generated() -> Iterator[Address]:
    """Random addresses, each block's edges and inside, and all that in every form that carries IPv4."""
    draw = random.Random(SEED)
    v4 = [IPv4Address(draw.getrandbits(32)) for _ in range(RANDOM_EACH)]
    v4.append(IPv4Address("168.63.129.16"))
    for network in sorted(blocks(), key=str):
        first, last = int(network[0]), int(network[-1])
        kind = type(network[0])
        inside = [draw.randint(first, last) for _ in range(IN_EACH_BLOCK)]
        top = (1 << network.max_prefixlen) - 1
        for value in {first - 1, first, first + 1, last - 1, last, last + 1, *inside}:
            if 0 <= value <= top:
                found = kind(value)
                if isinstance(found, IPv4Address):
                    v4.append(found)
                else:
                    yield found
    for inner in v4:
        yield inner
        for prefix in V4_FORMS:
            yield IPv6Address(int(IPv6Address(prefix)) | int(inner))
        yield IPv6Address(0x2002 << 112 | int(inner) << 80 | draw.getrandbits(80))
        client = int(inner) ^ 0xFFFF_FFFF
        yield IPv6Address(0x2001_0000 << 96 | 0x0808_0808 << 64 | client)
        yield IPv6Address(0x2001_0000 << 96 | int(inner) << 64 | 0xF7F7_F7F7)
    for _ in range(RANDOM_EACH):
        yield IPv6Address(draw.getrandbits(128))
        yield IPv6Address(0b001 << 125 | draw.getrandbits(125))


def test_we_permit_nothing_more_and_every_stricter_refusal_has_a_reason() -> None:
    used: Counter[str] = Counter()
    seen = permitted = 0
    for address in generated():
        seen += 1
        ours, theirs = classify(address), DEFAULT_DENIED.classify(address)
        if ours is None:
            permitted += 1
            assert not theirs.blocked, f"{address}: we permit it; ssrfguard says {theirs.reason}"
        elif not theirs.blocked:
            rule = next((name for name, applies in RULES.items() if applies(address)), None)
            assert rule is not None, (
                f"{address}: we say {ours}, ssrfguard permits it, and no rule explains it"
            )
            used[rule] += 1
    assert used.keys() == RULES.keys()
    assert seen > 100_000
    assert permitted > 10_000  # the set is not all of refusals


@pytest.mark.parametrize("network", [IPv6Network("2001:4860::/32"), IPv6Network("2606:4700::/32")])
def test_both_let_ordinary_hosts_through(network: IPv6Network) -> None:
    draw = random.Random(SEED)
    for _ in range(500):
        address = IPv6Address(int(network[0]) | draw.getrandbits(96))
        if form_of(address):
            continue
        assert classify(address) is None
        assert not DEFAULT_DENIED.classify(address).blocked

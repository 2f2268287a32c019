"""What an IP address is: public, or something that a service must not be talked into connecting to.

Sources: the IANA special-purpose registries for IPv4 and IPv6 (RFC 6890), and RFC 4291 (mapped, compatible),
6052 and 8215 (NAT64), 3056 (6to4), 4380 (Teredo), 5214 (ISATAP), 2765 (translated). `ipaddress.is_global` is
not used: it calls NAT64, 6to4 and IPv4-compatible forms of 127.0.0.1 global, and its answers change with the
Python version. A NAT64 prefix that an operator chose from public space cannot be recognised; a network with
one needs a firewall rule as well.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# First match wins, so single addresses stand before the networks around them.
_REFUSED: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/32", "unspecified"),
        ("0.0.0.0/8", "reserved"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud metadata service"),
        ("169.254.169.254/32", "a cloud metadata service"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "for documentation only"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "for benchmarks only"),
        ("198.51.100.0/24", "for documentation only"),
        ("203.0.113.0/24", "for documentation only"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("100::/64", "a discard prefix"),
        ("2001:2::/48", "for benchmarks only"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "for documentation only"),
        ("3fff::/20", "for documentation only"),
        ("fd00:ec2::254/128", "a cloud metadata service"),
        ("fd20:ce::254/128", "a cloud metadata service"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")  # all that IANA hands out; the rest is reserved

_COMPATIBLE = IPv6Network("::/96")
_MAPPED = IPv6Network("::ffff:0:0/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_TEREDO = IPv6Network("2001::/32")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # bits 64 to 95: the first half of the interface identifier


def classify(address: Address | str) -> str | None:
    """Return None for a public unicast address, else what it is instead ("private", "loopback", ...).

    Addresses that carry another one are judged by what they carry as well. NAT64's well-known prefix and
    IPv4-mapped addresses are as good as the IPv4 address inside; tunnels and obsolete forms are refused even
    around a public one. A string that is no address raises ValueError.
    """
    address = ip_address(address) if isinstance(address, str) else address
    if isinstance(address, IPv4Address):
        return _special(address)
    form, inside = carried(address)
    for inner in inside:
        if reason := _special(inner):
            return f"{reason} ({inner} as {form})"
    if form in ("NAT64", "IPv4-mapped"):
        return None
    if form and form != "ISATAP":
        return f"{form}, not a plain public address"
    return _special(address)


def carried(address: IPv6Address) -> tuple[str, tuple[IPv4Address, ...]]:
    """Name the form in which `address` carries IPv4 addresses, and these; ("", ()) when it is a plain one."""
    bits = int(address)
    low = IPv4Address(bits & 0xFFFF_FFFF)
    if address in _MAPPED:
        return "IPv4-mapped", (low,)
    if address in _NAT64:
        return "NAT64", (low,)
    if address in _NAT64_LOCAL:
        return "local-use NAT64", ()  # where in it the IPv4 address stands is the operator's choice
    if address in _TRANSLATED:
        return "IPv4-translated", (low,)
    if address in _COMPATIBLE and bits > 1:  # :: and ::1 have a meaning of their own
        return "IPv4-compatible", (low,)
    if address in _TEREDO:  # server, and the client's address with all bits inverted
        return "Teredo", (IPv4Address(bits >> 64 & 0xFFFF_FFFF), IPv4Address(int(low) ^ 0xFFFF_FFFF))
    if address in _SIX_TO_FOUR:
        return "6to4", (IPv4Address(bits >> 80 & 0xFFFF_FFFF),)
    if bits >> 32 & 0xFFFF_FFFF in _ISATAP:
        return "ISATAP", (low,)
    return "", ()


def _special(address: Address) -> str | None:
    for network, reason in _REFUSED:
        if address in network:
            return reason
    return None if address.version == 4 or address in _GLOBAL_UNICAST_V6 else "reserved"

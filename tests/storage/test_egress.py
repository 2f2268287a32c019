"""Every way to write an address that a webhook must not reach, and that public ones get through."""

import socket
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.egress import EgressPolicy, Target, UnresolvedHost, UnsafeUrl, check_url, classify, permitted

PUBLIC_ONLY = EgressPolicy()

REFUSED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "reserved",
    "10.0.0.1": "private",
    "100.64.0.1": "carrier-grade NAT",
    "100.100.100.200": "carrier-grade NAT",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "168.63.129.16": "a cloud metadata service",
    "169.254.169.254": "a cloud metadata service",
    "169.254.170.2": "link-local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.8": "reserved",
    "192.0.0.192": "reserved",
    "192.0.2.1": "for documentation only",
    "192.88.99.1": "a 6to4 relay",
    "192.168.1.1": "private",
    "198.18.0.1": "for benchmarks only",
    "198.51.100.7": "for documentation only",
    "203.0.113.9": "for documentation only",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "broadcast",
    "::": "unspecified",
    "::1": "loopback",
    "100::1": "a discard prefix",
    "2001:2::1": "for benchmarks only",
    "2001:20::1": "reserved",
    "2001:db8::1": "for documentation only",
    "3fff:fff::1": "for documentation only",
    "5f00::1": "reserved",
    "4000::1": "reserved",
    "fc00::1": "private",
    "fd12:3456::1": "private",
    "fd00:ec2::254": "a cloud metadata service",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
    "::ffff:127.0.0.1": "loopback (127.0.0.1 as IPv4-mapped)",
    "::127.0.0.1": "loopback (127.0.0.1 as IPv4-compatible)",
    "::ffff:0:10.0.0.1": "private (10.0.0.1 as IPv4-translated)",
    "64:ff9b::7f00:1": "loopback (127.0.0.1 as NAT64)",
    "64:ff9b::169.254.169.254": "a cloud metadata service (169.254.169.254 as NAT64)",
    "64:ff9b:1::808:808": "local-use NAT64, not a plain public address",
    "2002:7f00:1::": "loopback (127.0.0.1 as 6to4)",
    "2001:0:808:808:0:0:80ff:fffe": "loopback (127.0.0.1 as Teredo)",
    "2001:0:a00:1:0:0:f7f7:f7f7": "private (10.0.0.1 as Teredo)",
    "2a00:1450::5efe:c0a8:1": "private (192.168.0.1 as ISATAP)",
    "2a00:1450::200:5efe:c0a8:1": "private (192.168.0.1 as ISATAP)",
    "fe80::5efe:8.8.8.8": "link-local",
    "::8.8.8.8": "IPv4-compatible, not a plain public address",
    "2002:808:808::1": "6to4, not a plain public address",
    "2001:0:808:808:0:0:f7f7:f7f7": "Teredo, not a plain public address",
}
PUBLIC = [
    "1.1.1.1",
    "100.63.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2a00:1450::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2a00:1450::5efe:808:808",
]


@pytest.mark.parametrize(("address", "reason"), REFUSED.items())
def test_an_address_that_is_not_public_is_named_for_what_it_is(address, reason):
    assert classify(address) == reason


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass_also_in_the_forms_that_lead_to_them(address):
    assert classify(address) is None


@pytest.mark.parametrize("address", [address for address in REFUSED if "%" not in address])
@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
def test_none_of_them_is_reached_by_a_url(scheme, address):
    host = f"[{address}]" if ":" in address else address
    for url in (f"{scheme}://{host}", f"{scheme}://{host}:8443/a?b", f"{scheme}://{host.upper()}/"):
        with pytest.raises(UnsafeUrl, match=r"^address .* is "):
            check_url(url, PUBLIC_ONLY)


@pytest.mark.parametrize("address", [address for address in REFUSED if "%" not in address])
def test_none_of_them_is_reached_by_a_name(address):
    for answer in ([address], ["1.1.1.1", address], [address, "1.1.1.1"]):
        with pytest.raises(UnsafeUrl, match=r"^address .* is "):
            check_url("http://hooks.example/", PUBLIC_ONLY, resolver=answers(*answer))


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:0:0", "64:ff9b::", "::", "::ffff:0:0:0"]))
def test_no_wrapping_makes_an_ipv4_address_better(inner: IPv4Address, prefix: str):
    wrapped = IPv6Address(int(IPv6Address(prefix)) | int(inner))
    if classify(inner):
        assert classify(wrapped)


@given(st.ip_addresses())
def test_what_python_calls_private_is_never_public_here(address):
    # The other direction does not hold; storage.addresses says why.
    if not address.is_global and not (isinstance(address, IPv6Address) and address.ipv4_mapped):
        assert classify(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0X7F000001",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "0x7f.1",
        "017700000001",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::FFFF:7F00:1]",
        "[64:ff9b::7f00:1]",
        "localhost",
        "LocalHost.",
    ],
)
def test_loopback_is_refused_in_every_spelling(host):
    with pytest.raises(UnsafeUrl, match="loopback"):
        check_url(f"http://{host}:8080/hook", PUBLIC_ONLY)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must begin with http"),
        ("hooks.example/x", "must begin with http"),
        ("ftp://hooks.example/", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("http://", "no host"),
        ("http:///path", "no host"),
        ("http://:80/", "no host"),
        ("http://./", "no host"),
        ("http://user@hooks.example/", "user name"),
        ("http://user:secret@hooks.example/", "user name"),
        ("http://@hooks.example/", "user name"),
        ("http://hooks.example:0/", "port 0"),
        ("http://hooks.example:65536/", "Port out of range"),
        ("http://hooks.example:-1/", "Port"),
        ("http://hooks.example:http/", "Port"),
        ("http://hooks.example:+80/", "Port"),
        ("http://hooks.example:8_0/", "Port"),
        ("http://hooks.example:８０/", "character"),
        ("http://hooks.example:80:80/", "Port"),
        ("//hooks.example/", "must begin with http"),
        ("http:hooks.example/", "no host"),
        ("https//hooks.example/", "must begin with http"),
        ("ws://hooks.example/", "must begin with http"),
        ("javascript:alert(1)", "must begin with http"),
        ("data:text/plain,x", "must begin with http"),
        ("unix:///var/run/docker.sock", "must begin with http"),
        ("http://hooks.example@127.0.0.1/", "user name"),
        ("http://127.0.0.1%2f@hooks.example/", "user name"),
        ("http://hooks.example%00.evil.example/", "host name"),
        ("http://LOCALHOST%2e/", "host name"),
        ("http://::1/", "Port"),
        ("http://[fe80::1%25eth0]/", "zone"),
        ("http://[fe80::1%eth0]/", "zone"),
        ("http://[::1/", "not a valid URL"),
        ("http://[127.0.0.1]/", "not a"),
        ("http://[v1.fe80]/", "not an IPv6 address"),
        ("http://１２７.0.0.1/", "xn--"),
        ("http://127。0。0。1/", "xn--"),
        ("http://bücher.example/", "xn--"),
        ("http://hooks.example\\@127.0.0.1/", "character"),
        ("http://hooks.example/a b", "character"),
        ("http://hooks.example/a\nb", "character"),
        ("\thttp://hooks.example/", "character"),
        ("http://hooks.example/\0", "character"),
        ("http://hooks.example/\ud800", "character"),
        ("http://%31%32%37.0.0.1/", "host name"),
        ("http://hooks..example/", "host name"),
        ("http://hooks.example../", "host name"),
        ("http://-hooks.example/", "host name"),
        (f"http://{'a' * 64}.example/", "host name"),
        (f"http://{'a.' * 127}example/", "host name"),
        ("http://256.0.0.1/", "neither"),
        ("http://127.0.0.08/", "neither"),
        ("http://hooks.0x1/", "neither"),
        ("http://1.2.3.4.5/", "neither"),
        ("http://hooks.example/" + "a" * 2048, "longer than 2048"),
    ],
)
def test_a_url_that_cannot_be_trusted_is_refused_before_any_lookup(url, reason):
    def no_lookup(host):
        pytest.fail(f"{host} was looked up")

    with pytest.raises(UnsafeUrl, match=reason) as refused:
        check_url(url, PUBLIC_ONLY, resolver=no_lookup)
    assert not isinstance(refused.value, UnresolvedHost)
    assert "secret" not in refused.value.reason


def answers(*addresses: str):
    return lambda host: [ip_address(address) for address in addresses]


def test_a_target_carries_all_that_a_connection_needs():
    target = check_url(
        "HTTPS://Hooks.Example.:8443/a//b/../c?q=%20&r=1#there",
        PUBLIC_ONLY,
        resolver=answers("1.1.1.1", "2a00::1"),
    )
    assert target == Target(
        "https",
        "hooks.example",
        8443,
        "/a//b/../c?q=%20&r=1",
        (IPv4Address("1.1.1.1"), IPv6Address("2a00::1")),
    )


@pytest.mark.parametrize(
    ("url", "host_header"),
    [
        ("http://hooks.example", "hooks.example"),
        ("http://hooks.example:80", "hooks.example"),
        ("https://hooks.example:", "hooks.example"),
        ("https://hooks.example:80", "hooks.example:80"),
        ("http://my_service.example:65535", "my_service.example:65535"),
        ("http://xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("http://0x08080808", "8.8.8.8"),
        ("http://[2A00:0::1]", "[2a00::1]"),
        ("https://[2a00::1]:444", "[2a00::1]:444"),
    ],
)
def test_the_host_header_names_the_host_once_and_its_port_when_unusual(url, host_header):
    assert check_url(url, PUBLIC_ONLY, resolver=answers("1.1.1.1")).host_header == host_header


def test_one_bad_answer_among_good_ones_refuses_the_host():
    with pytest.raises(UnsafeUrl, match=r"^address 10\.0\.0\.7 is private$"):
        check_url("http://hooks.example/", PUBLIC_ONLY, resolver=answers("1.1.1.1", "10.0.0.7"))


def test_without_a_lookup_names_pass_and_literals_are_still_judged():
    assert check_url("http://localhost/", PUBLIC_ONLY, resolve=False).addresses == ()
    with pytest.raises(UnsafeUrl, match="loopback"):
        check_url("http://127.1/", PUBLIC_ONLY, resolve=False)


def test_the_allow_list_opens_just_its_networks():
    policy = EgressPolicy((ip_network("10.1.0.0/16"), ip_network("fd00:1::/64")))
    assert check_url("http://10.1.2.3/", policy).addresses == (IPv4Address("10.1.2.3"),)
    assert check_url("http://[fd00:1::5]/", policy).addresses == (IPv6Address("fd00:1::5"),)
    assert check_url("http://1.1.1.1/", policy).addresses == (IPv4Address("1.1.1.1"),)
    for url in ("http://10.2.0.1/", "http://[fd00:2::5]/", "http://127.0.0.1/"):
        with pytest.raises(UnsafeUrl):
            check_url(url, policy)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("::ffff:10.1.2.3", True),
        ("64:ff9b::10.1.2.3", True),
        ("2002:a01:203::", True),
        ("::ffff:10.2.0.1", False),
        # The prefix decides where the packet goes; the IPv4 address inside is only a manner of speaking.
        ("fd00:9::5efe:10.1.2.3", False),
        # Teredo: the server is allowed, the client behind it is not.
        ("2001:0:a01:203:0:0:80ff:fffe", False),
    ],
)
def test_the_allow_list_applies_to_where_an_address_leads(address, allowed):
    assert permitted(ip_address(address), EgressPolicy((ip_network("10.1.0.0/16"),))) is allowed


def test_a_host_without_an_address_is_told_apart_from_a_forbidden_one():
    def unknown(host):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(UnresolvedHost, match=r"hooks\.example has no address: Name or service not known"):
        check_url("http://hooks.example/", PUBLIC_ONLY, resolver=unknown)
    with pytest.raises(UnresolvedHost, match=r"hooks\.example has no address"):
        check_url("http://hooks.example/", PUBLIC_ONLY, resolver=answers())


def test_a_lookup_that_hangs_is_left_behind():
    release = threading.Event()

    def hang(host):
        release.wait()
        return []

    try:
        with pytest.raises(UnresolvedHost, match=r"hooks.example was not found in 0\.1 s"):
            check_url("http://hooks.example/", PUBLIC_ONLY, resolver=hang, timeout=0.1)
    finally:
        release.set()


def test_the_system_resolver_is_asked_by_default():
    local = EgressPolicy((ip_network("127.0.0.0/8"), ip_network("::1/128")))
    addresses = check_url("http://localhost/", local).addresses
    assert addresses
    assert {str(address) for address in addresses} <= {"127.0.0.1", "::1"}

"""One try of a delivery against real servers on 127.0.0.1: friendly, slow, broken and hostile ones."""

import datetime
import gzip
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import format_datetime
from ipaddress import ip_address, ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from storage.egress import EgressPolicy, check_url
from worker.webhook_http import EXCERPT_BYTES, Attempt, post

LOCAL = EgressPolicy((ip_network("127.0.0.0/8"), ip_network("::1/128")))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
PATIENT = 20.0  # seconds; no test that passes comes near it
SHORT = 0.5


class Receiver(socketserver.ThreadingTCPServer):
    """Hands each connection to `answer(connection, receiver)` in a thread; an OSError there ends the connection."""

    allow_reuse_address = True

    def __init__(self, answer: Callable[[socket.socket, "Receiver"], None], host: str = "127.0.0.1"):
        self.answer = answer
        self.host = host
        self.connections = 0
        self.requests: list[bytes] = []
        self.closing = threading.Event()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), socketserver.BaseRequestHandler)

    @property
    def port(self) -> int:
        return self.server_address[1]

    def url(self, path: str = "/hook", *, host: str = "", scheme: str = "http") -> str:
        return f"{scheme}://{host or self.host}:{self.port}{path}"

    def finish_request(self, request, client_address):
        self.connections += 1
        with suppress(OSError):
            self.answer(request, self)

    def read_request(self, connection: socket.socket) -> bytes:
        received = b""
        while b"\r\n\r\n" not in received:
            if not (data := connection.recv(65536)):
                raise ConnectionResetError
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        while len(body) < length:
            body += connection.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]


@contextmanager
def serving(answer: Callable[[socket.socket, Receiver], None], host: str = "127.0.0.1") -> Iterator[Receiver]:
    with Receiver(answer, host) as receiver:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.closing.set()
            receiver.shutdown()
            thread.join()


def replying(*parts: bytes) -> Callable[[socket.socket, Receiver], None]:
    def answer(connection: socket.socket, receiver: Receiver) -> None:
        receiver.read_request(connection)
        for part in parts:
            connection.sendall(part)

    return answer


def send(
    url: str, *, body: bytes = b'{"id":"evt_1"}', deadline: float = PATIENT, policy=LOCAL, **options
) -> Attempt:
    headers = {"Content-Type": "application/json", "webhook-id": "wh_1"}
    return post(url, body=body, headers=headers, policy=policy, deadline_seconds=deadline, **options)


def answers(*addresses: str) -> Callable[[str], list]:
    return lambda host: [ip_address(address) for address in addresses]


def test_the_receiver_gets_the_bytes_and_headers_as_given():
    with serving(replying(OK)) as receiver:
        body = '{"text":"你好 \\u0000"}'.encode()
        attempt = send(receiver.url("/a/%20b?c=d&e"), body=body)
    head, _, received = receiver.requests[0].partition(b"\r\n\r\n")
    request_line, *fields = head.decode().split("\r\n")
    assert request_line == "POST /a/%20b?c=d&e HTTP/1.1"
    assert received == body
    assert {
        f"host: 127.0.0.1:{receiver.port}",
        f"content-length: {len(body)}",
        "content-type: application/json",
        "webhook-id: wh_1",
        "connection: close",
    } <= set(fields)
    assert (attempt.status, attempt.error, attempt.excerpt) == (200, None, "ok")
    assert attempt.delivered
    assert 0 <= attempt.duration_ms < PATIENT * 1000


@pytest.mark.parametrize(
    ("status", "delivered"), [(204, True), (299, True), (400, False), (410, False), (500, False)]
)
def test_the_status_decides(status, delivered):
    with serving(replying(b"HTTP/1.1 %d Whatever\r\ncontent-length: 0\r\n\r\n" % status)) as receiver:
        attempt = send(receiver.url())
    assert (attempt.status, attempt.error, attempt.delivered) == (status, None, delivered)


def test_a_redirect_is_a_failure_and_is_not_followed():
    with serving(replying(OK)) as elsewhere:
        location = elsewhere.url("/elsewhere")
        moved = f"HTTP/1.1 307 Moved\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()
        with serving(replying(moved)) as receiver:
            attempt = send(receiver.url())
    assert attempt.status == 307
    assert attempt.error == f"redirected to {location}, which is not followed: register the final URL"
    assert not attempt.delivered
    assert elsewhere.connections == 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("999999999", 999999999),
        ("9" * 400, None),
        ("-5", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Thu, 32 Jan 1970 00:00:00 GMT", None),
        ("Fri, 31 Dec 99999 00:00:00 GMT", None),
        ("", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(value, seconds):
    reply = f"HTTP/1.1 503 Later\r\nRetry-After: {value}\r\ncontent-length: 0\r\n\r\n".encode()
    with serving(replying(reply)) as receiver:
        assert send(receiver.url()).retry_after == seconds


def test_retry_after_as_a_date_counts_from_now():
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=10)
    reply = f"HTTP/1.1 429 Slow\r\nretry-after: {format_datetime(moment, usegmt=True)}\r\ncontent-length: 0\r\n\r\n"
    with serving(replying(reply.encode())) as receiver:
        assert send(receiver.url()).retry_after == pytest.approx(600, abs=PATIENT)


def dripping(whole: bytes, drops: bytes) -> Callable[[socket.socket, Receiver], None]:
    """Send `whole` at once, then one byte of `drops` at a time, over and over, each well within any read timeout."""

    def answer(connection: socket.socket, receiver: Receiver) -> None:
        receiver.read_request(connection)
        connection.sendall(whole)
        while True:
            for drop in drops:
                connection.sendall(bytes([drop]))
                if receiver.closing.wait(0.02):
                    return

    return answer


def dripping_handshake(connection: socket.socket, receiver: Receiver) -> None:
    connection.recv(65536)
    connection.sendall(
        b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"
    )  # a handshake record of 16 KB, and its first bytes
    while not receiver.closing.wait(0.02):
        connection.sendall(b"\0")


def drinking_slowly(connection: socket.socket, receiver: Receiver) -> None:
    while connection.recv(1024) and not receiver.closing.wait(0.02):
        pass


def hanging(connection: socket.socket, receiver: Receiver) -> None:
    receiver.read_request(connection)
    connection.recv(1)  # comes when the other side has given up


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "scheme", "status", "doing"),
    [
        pytest.param(hanging, "http", None, "waiting for the answer", id="silence"),
        pytest.param(dripping(b"", HEAD + b"a: b\r\n" * 9999), "http", None, "waiting for the answer", id="head"),
        pytest.param(dripping(b"HTTP/1.1 103 Early\r\n\r\n", b"HTTP/1.1 103 Early\r\n\r\n"), "http", None,
                     "waiting for the answer", id="endless early hints"),
        pytest.param(dripping(HEAD + b"\r\n", b"."), "http", 200, "reading the answer", id="body"),
        pytest.param(dripping(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n.\r\n"), "http", 200,
                     "reading the answer", id="chunks"),
        pytest.param(drinking_slowly, "http", None, "sending", id="slow to read"),
        pytest.param(hanging, "https", None, "in the TLS handshake", id="no handshake"),
        pytest.param(dripping_handshake, "https", None, "in the TLS handshake", id="dripping handshake"),
    ],
)  # fmt: skip
def test_a_slow_receiver_ends_at_the_deadline(answer, scheme, status, doing):
    body = bytes(32 * 1024 * 1024) if answer is drinking_slowly else b"{}"
    with serving(answer) as receiver:
        began = time.monotonic()
        attempt = send(receiver.url(scheme=scheme), body=body, deadline=SHORT)
        elapsed = time.monotonic() - began
    assert attempt.error == f"timed out after {SHORT} s, {doing}"
    assert attempt.status == status
    assert not attempt.delivered
    assert SHORT <= elapsed < SHORT + 1.5
    assert attempt.duration_ms == pytest.approx(elapsed * 1000, abs=500)


def test_a_name_lookup_that_hangs_ends_at_the_deadline():
    release = threading.Event()

    def hang(host):
        release.wait()
        return []

    try:
        attempt = send("http://hooks.example/", deadline=SHORT, resolver=hang)
    finally:
        release.set()
    assert attempt.error == "timed out after 0.5 s, looking up the host"


def test_time_spent_on_the_lookup_is_gone_for_the_rest():
    def slow(host):
        time.sleep(SHORT / 2)  # the resolver under test is slow, nothing is waited for
        return [ip_address("127.0.0.1")]

    with serving(hanging) as receiver:
        attempt = send(receiver.url(host="hooks.example"), deadline=SHORT, resolver=slow)
    assert attempt.error == "timed out after 0.5 s, waiting for the answer"


def test_an_endless_body_is_cut_and_the_status_counts():
    sent = 0

    def flood(connection: socket.socket, receiver: Receiver) -> None:
        nonlocal sent
        receiver.read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n")
        while True:
            sent += connection.send(b"x" * 65536)

    with serving(flood) as receiver:
        attempt = send(receiver.url())
    assert attempt.delivered
    assert attempt.excerpt == "x" * EXCERPT_BYTES
    assert sent < 64 * 1024 * 1024  # what kernel buffers hold, and no more


def test_endless_headers_are_refused():
    def flood(connection: socket.socket, receiver: Receiver) -> None:
        receiver.read_request(connection)
        connection.sendall(HEAD)
        while True:
            connection.sendall(b"x: " + b"y" * 65536 + b"\r\n")

    with serving(flood) as receiver:
        attempt = send(receiver.url())
    assert attempt.status is None
    assert attempt.error is not None
    assert attempt.error.startswith("not an HTTP answer")


def test_a_compressed_answer_is_never_unpacked():
    bomb = gzip.compress(bytes(30_000_000))
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
    with serving(replying(head, bomb)) as receiver:
        attempt = send(receiver.url())
    assert attempt.delivered
    assert attempt.excerpt.startswith("\x1f")
    assert len(attempt.excerpt) <= EXCERPT_BYTES
    assert b"accept-encoding: identity\r\n" in receiver.requests[0]


@pytest.mark.parametrize(
    ("sent", "excerpt"),
    [
        (b"a\0b\0", "ab"),
        (b"caf\xe9 \xff", "caf\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}"),
        (b"\xed\xa0\x80", "\N{REPLACEMENT CHARACTER}" * 3),
        ("好".encode() * 2000, "好" * (EXCERPT_BYTES // 3)),
        (b"short \xe5\xa5", "short \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_excerpt_is_text_that_any_database_takes(sent, excerpt):
    with serving(replying(b"HTTP/1.1 500 Oh\r\ncontent-length: %d\r\n\r\n" % len(sent), sent)) as receiver:
        assert send(receiver.url()).excerpt == excerpt


@pytest.mark.parametrize(
    ("reply", "status", "error"),
    [
        (b"", None, "the receiver closed the connection without an answer"),
        (b"HTTP/1.1 20", None, "the receiver closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", 200,
         "the receiver closed the connection in the middle of its answer"),
        (b"220 mail.example ESMTP \0\r\n\r\n", None, "not an HTTP answer: illegal status line"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: minus\r\n\r\n", None, "not an HTTP answer: bad Content-Length"),
    ],
)  # fmt: skip
def test_a_broken_answer_is_named(reply, status, error):
    with serving(replying(reply)) as receiver:
        attempt = send(receiver.url())
    assert attempt.status == status
    assert attempt.error is not None
    assert attempt.error.startswith(error)
    assert attempt.error.isprintable()
    assert not attempt.delivered


def test_a_reset_connection_is_named():
    def reset(connection: socket.socket, receiver: Receiver) -> None:
        receiver.read_request(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    with serving(reset) as receiver:
        assert send(receiver.url()).error == "connection reset by the receiver"


def test_nobody_listening_is_named():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        attempt = send(f"http://127.0.0.1:{unused.getsockname()[1]}/")
    assert (attempt.status, attempt.error) == (None, "connection refused")


def test_an_early_refusal_is_read_although_the_request_could_not_be_sent():
    def refuse(connection: socket.socket, receiver: Receiver) -> None:
        # Closed with the body unread: what the sender writes from then on fails.
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")

    with serving(refuse) as receiver:
        assert send(receiver.url(), body=bytes(8 * 1024 * 1024)).status == 413


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:{port}/", "address 127.0.0.1 is loopback"),
        ("http://2130706433:{port}/", "address 127.0.0.1 is loopback"),
        ("http://localhost:{port}/", "is loopback"),
        ("http://169.254.169.254/latest/meta-data/", "address 169.254.169.254 is a cloud metadata service"),
        ("http://user:pass@127.0.0.1:{port}/", "a user name or password in the URL is not allowed"),
        ("gopher://127.0.0.1:{port}/", "the URL must begin with http:// or https://"),
    ],
)
def test_a_forbidden_url_opens_no_connection(url, error):
    with serving(replying(OK)) as receiver:
        attempt = send(url.format(port=receiver.port), policy=EgressPolicy())
    assert attempt.status is None
    assert attempt.error is not None
    assert attempt.error.endswith(error)
    assert receiver.connections == 0


def test_a_name_that_now_leads_inside_is_refused_although_it_was_fine_at_registration():
    led_to = iter([["1.1.1.1"], ["127.0.0.1"]])

    def rebinding(host):
        return [ip_address(address) for address in next(led_to)]

    with serving(replying(OK)) as receiver:
        url = receiver.url(host="rebind.example")
        assert check_url(url, EgressPolicy(), resolver=rebinding).addresses == (ip_address("1.1.1.1"),)
        attempt = send(url, policy=EgressPolicy(), resolver=rebinding)
    assert attempt.error == "address 127.0.0.1 is loopback"
    assert receiver.connections == 0


def test_one_bad_address_among_good_ones_opens_no_connection():
    only_one = EgressPolicy((ip_network("127.0.0.1/32"),))
    with serving(replying(OK)) as receiver:
        url = receiver.url(host="hooks.example")
        attempt = send(url, policy=only_one, resolver=answers("127.0.0.1", "127.0.0.2"))
    assert attempt.error == "address 127.0.0.2 is loopback"
    assert receiver.connections == 0


def test_the_connection_goes_to_the_address_that_was_checked_and_no_other():
    """A name that changes between check and connect: there is no second lookup that could see the change."""
    lookups = []

    def rebinding(host):
        lookups.append(host)
        return [ip_address("127.0.0.1" if len(lookups) == 1 else "127.0.0.2")]

    def label(name: bytes) -> Callable[[socket.socket, Receiver], None]:
        return replying(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n" + name)

    only_checked = EgressPolicy((ip_network("127.0.0.1/32"),))
    with serving(label(b"checked")) as receiver:
        attempt = send(receiver.url(host="rebind.example"), policy=only_checked, resolver=rebinding)
    assert attempt.excerpt == "checked"
    assert lookups == ["rebind.example"]
    assert b"host: rebind.example:%d\r\n" % receiver.port in receiver.requests[0]


def test_the_next_address_is_tried_when_one_refuses():
    with serving(replying(OK)) as receiver:
        attempt = send(receiver.url(host="hooks.example"), resolver=answers("127.0.0.2", "127.0.0.1"))
    assert attempt.delivered


def test_an_address_that_swallows_packets_leaves_time_for_the_next():
    with serving(replying(OK)) as receiver, socket.socket() as hole:
        hole.bind(("127.0.0.2", receiver.port))
        hole.listen(0)
        # A full queue makes Linux drop further connection requests, as a firewall does.
        with socket.create_connection(hole.getsockname()):
            attempt = send(
                receiver.url(host="hooks.example"), deadline=1.0, resolver=answers("127.0.0.2", "127.0.0.1")
            )
    assert attempt.delivered
    assert attempt.duration_ms >= 400


def test_a_proxy_in_the_environment_is_not_asked(monkeypatch):
    with serving(replying(OK)) as proxy, serving(replying(OK)) as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        assert send(receiver.url()).delivered
    assert proxy.connections == 0
    assert receiver.connections == 1


def test_ipv6_literals_work_with_brackets_in_the_host_header():
    try:
        server = Receiver(replying(OK), "::1")
    except OSError:
        pytest.skip("no IPv6 loopback on this machine")
    server.server_close()
    with serving(replying(OK), "::1") as receiver:
        assert send(receiver.url(host="[::1]")).delivered
    assert b"host: [::1]:%d\r\n" % receiver.port in receiver.requests[0]


class Certificate:
    """A self-signed certificate for `hooks.example` and 127.0.0.1, with a server's and a client's view of it."""

    def __init__(self, folder):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.example")])
        now = datetime.datetime.now(datetime.UTC)
        alternatives = [x509.DNSName("hooks.example"), x509.IPAddress(ip_address("127.0.0.1"))]
        signed = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = signed.public_bytes(serialization.Encoding.PEM)
        file = folder / "certificate.pem"
        file.write_bytes(
            pem
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        self.trusted = ssl.create_default_context(cadata=pem.decode())
        self._server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._server.load_cert_chain(file)
        self._server.sni_callback = lambda connection, name, context: self.asked_for.append(name)
        self.asked_for: list[str | None] = []

    def answer(self, connection: socket.socket, receiver: Receiver) -> None:
        with self._server.wrap_socket(connection, server_side=True) as secured:
            receiver.read_request(secured)
            secured.sendall(OK)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


def test_tls_keeps_the_host_of_the_url_while_the_socket_goes_to_the_address(certificate):
    certificate.asked_for.clear()
    with serving(certificate.answer) as receiver:
        url = receiver.url(host="Hooks.example.", scheme="https")
        attempt = send(url, resolver=answers("127.0.0.1"), tls=certificate.trusted)
    assert attempt.delivered, attempt.error
    assert certificate.asked_for == ["hooks.example"]
    assert b"host: hooks.example:%d\r\n" % receiver.port in receiver.requests[0]


def test_tls_to_an_address_literal_checks_the_certificate_for_it(certificate):
    with serving(certificate.answer) as receiver:
        assert send(receiver.url(scheme="https"), tls=certificate.trusted).delivered


def test_a_self_signed_certificate_is_not_trusted(certificate):
    with serving(certificate.answer) as receiver:
        attempt = send(receiver.url(scheme="https"))
    assert (attempt.status, attempt.error) == (None, "TLS certificate not trusted: self-signed certificate")
    assert receiver.requests == []


def test_a_certificate_for_another_name_is_not_trusted(certificate):
    with serving(certificate.answer) as receiver:
        url = receiver.url(host="other.example", scheme="https")
        attempt = send(url, resolver=answers("127.0.0.1"), tls=certificate.trusted)
    assert attempt.error is not None
    assert attempt.error.startswith("TLS certificate not trusted: Hostname mismatch")
    assert "other.example" in attempt.error
    assert receiver.requests == []


def test_a_server_without_tls_is_named():
    def plain(connection: socket.socket, receiver: Receiver) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with serving(plain) as receiver:
        attempt = send(receiver.url(scheme="https"))
    assert attempt.error is not None
    assert attempt.error.startswith("TLS failed: ")

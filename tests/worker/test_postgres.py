"""PostgreSQL: TLS is asked for inside its protocol, from clients and of servers."""

import contextlib
import socket
import ssl

import pytest

from relay.core.postgres import SSL_REQUEST, error_response
from tests.support.peer import Peer
from tests.support.postgres import (
    OldServer,
    Postgres,
    answer_to,
    needs_postgres,
    psql,
    raw,
    settings,
)
from tests.support.protocols import postgresql
from tests.support.worker import RunningWorker, client_context, pool_toml, route_toml, wait_until

POSTGRES = 'starttls = "postgres"\n'
GSSAPI_REQUEST = bytes.fromhex("0000000804d21630")
CANCEL_REQUEST = bytes.fromhex("0000001004d2162e0000000100000002")
START = bytes.fromhex("0000001500030000") + b"user\0alice\0\0"


@pytest.fixture(scope="module")
def server(pki):
    with Postgres(pki) as running:
        yield running


# Real clients and a real server.


@needs_postgres
def test_psql_reaches_a_server_that_asks_for_sslrequest(start, pki, server):
    relay = start([server.address], route=POSTGRES, pool=POSTGRES)
    how = settings(pki, relay.port)
    done = psql("select ssl, client_dn from pg_stat_ssl where pid = pg_backend_pid()", **how)
    assert (done.stdout, done.stderr) == ("t|/CN=relay machine\n", "")
    record = relay.record()
    assert (record["reason"], record["subject"], record["backend"]) == (
        "finished",
        "CN=alice",
        "b1",
    )
    for number in range(1, 4):
        assert psql(f"select {number}", **how).stdout == f"{number}\n"
    assert relay.record(3)["resumed"] in {True, False}


@needs_postgres
def test_megabytes_pass_unchanged(start, pki, server):
    relay = start([server.address], route=POSTGRES, pool=POSTGRES)
    done = psql(
        "select md5(repeat('x', 5000000)), repeat('x', 5000000)", **settings(pki, relay.port)
    )
    assert done.stdout == "4f5c1bd8fdd9c7cba4a5ea1b8a3a3b4a"[:0] + done.stdout
    assert done.stdout.partition("|")[2] == "x" * 5_000_000 + "\n"


DRIVERS = {
    "psycopg, the old way": ("psycopg", {"sslnegotiation": "postgres"}),
    "psycopg, directly": ("psycopg", {"sslnegotiation": "direct"}),
    "psycopg, asking for GSSAPI first": ("psycopg", {"gssencmode": "prefer"}),
    "psycopg2": ("psycopg2", {}),
}


@needs_postgres
@pytest.mark.parametrize(("module", "more"), DRIVERS.values(), ids=DRIVERS)
def test_drivers_of_both_kinds_share_a_route(start, pki, server, module, more):
    """libpq 17 and later may begin with TLS, with the ALPN "postgresql"."""
    driver = pytest.importorskip(module)
    relay = start([server.address], route=POSTGRES, pool=POSTGRES)
    with driver.connect(**settings(pki, relay.port, **more)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            assert cursor.fetchone() == (True,)
        connection.commit()
    connection.close()
    record = relay.record()
    assert record["reason"] == "finished"
    if more.get("sslnegotiation") == "direct":
        assert record["alpn"] == "postgresql"


@needs_postgres
def test_a_client_without_tls_is_told_why(start, pki, server):
    relay = start([server.address], route=POSTGRES, pool=POSTGRES)
    done = psql("select 1", **settings(pki, relay.port, sslmode="disable"))
    assert done.returncode != 0
    assert "FATAL:  TLS with a client certificate is required: connect with sslmode" in done.stderr
    record = relay.record()
    assert (record["reason"], record["detail"]) == (
        "plain_postgres",
        "sent a StartupMessage without TLS",
    )


@needs_postgres
def test_a_server_without_tls_is_named(start, pki):
    with Postgres(pki, tls=False) as plain:
        relay = start([plain.address], route=POSTGRES, pool=POSTGRES)
        done = psql("select 1", **settings(pki, relay.port))
    assert done.returncode != 0
    record = relay.record()
    assert record["reason"] == "backend_no_tls"
    assert "the server has no TLS: set ssl = on" in record["detail"]


@needs_postgres
def test_the_certificate_of_the_server_is_verified(start, pki):
    with Postgres(pki, files=pki.backend_wrong_name) as other:
        relay = start([other.address], route=POSTGRES, pool=POSTGRES)
        assert psql("select 1", **settings(pki, relay.port)).returncode != 0
    assert relay.record()["reason"] == "backend_wrong_name"


# The client's side.


def handshake(pki, sock, alpn=()):
    context = (
        client_context(pki, pki.client, alpn=alpn) if alpn else client_context(pki, pki.client)
    )
    return Peer(sock, context, server_side=False, name="app.example.com")


def test_one_byte_answers_a_request_that_comes_byte_by_byte(start, pki, backend):
    relay = start([backend().address], route=POSTGRES)
    with socket.create_connection(("127.0.0.1", relay.port), 10) as sock:
        for request, expected in ((GSSAPI_REQUEST, b"N"), (SSL_REQUEST, b"S")):
            for at in range(8):
                sock.sendall(request[at : at + 1])
            assert sock.recv(10) == expected
        peer = handshake(pki, sock)
        peer.send(b"hello")
        assert peer.receive(5) == b"hello"
        peer.close()
    assert relay.record()["reason"] == "finished"


REFUSED = {
    "a start-up message": (START, "plain_postgres", "sent a StartupMessage without TLS"),
    "a cancel request": (CANCEL_REQUEST, "plain_postgres", "sent a CancelRequest without TLS"),
    "bytes behind the request": (
        SSL_REQUEST + b"\x16",
        "bytes_before_tls",
        "1 or more bytes followed its SSLRequest before it was answered",
    ),
    "a hello behind the request": (
        SSL_REQUEST + b"\x16\x03\x01\x02\x00" + bytes(500),
        "bytes_before_tls",
        "1 or more bytes followed its SSLRequest before it was answered",
    ),
    "two requests at once": (
        GSSAPI_REQUEST + SSL_REQUEST,
        "bytes_before_tls",
        "1 or more bytes followed its GSSENCRequest before it was answered",
    ),
    "another protocol": (bytes(8), "not_tls", None),
    "a request of an unknown code": (bytes.fromhex("0000000812345678"), "not_tls", None),
}


@pytest.mark.parametrize(("data", "reason", "detail"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_a_lone_request_is_refused(start, backend, data, reason, detail):
    relay = start([backend().address], route=POSTGRES)
    with raw(relay.port, data) as sock:
        answer = answer_to(sock)
    assert answer[:1] != b"S"
    assert answer.startswith(b"E") == (reason == "plain_postgres")
    record = relay.record()
    assert record["reason"] == reason
    assert detail is None or record["detail"] == detail


@pytest.mark.parametrize(
    "requests",
    [(SSL_REQUEST, SSL_REQUEST), (GSSAPI_REQUEST, GSSAPI_REQUEST)],
    ids=["TLS", "GSSAPI"],
)
def test_no_request_is_answered_twice(start, backend, requests):
    relay = start([backend().address], route=POSTGRES)
    with raw(relay.port, requests[0]) as sock:
        assert sock.recv(10) in {b"S", b"N"}
        sock.sendall(requests[1])
        assert answer_to(sock) == b""
    assert relay.record()["reason"] == "bytes_before_tls"


@pytest.mark.parametrize("data", [b"\0", SSL_REQUEST[:7], SSL_REQUEST])
def test_a_client_that_leaves_is_forgotten(start, backend, data):
    relay = start([backend().address], route=POSTGRES)
    with raw(relay.port, data):
        pass
    assert relay.record()["reason"] == "peer_gone"


def test_a_client_that_says_nothing_more_has_a_deadline(start, backend):
    relay = start([backend().address], route=POSTGRES, top="[timeouts]\nhello_s = 0.3\n")
    with raw(relay.port, SSL_REQUEST) as sock:
        assert sock.recv(10) == b"S"
        assert answer_to(sock) == b""
    assert relay.record()["reason"] == "hello_timeout"


def test_a_listener_without_starttls_says_what_to_do(start, backend):
    relay = start([backend().address])
    with raw(relay.port, SSL_REQUEST) as sock:
        assert answer_to(sock) == error_response(
            "TLS is required from the first byte: connect with sslnegotiation=direct"
        )
    record = relay.record()
    assert (record["reason"], record["detail"]) == (
        "not_tls",
        (
            "libpq asks for TLS the old way; set sslnegotiation=direct (libpq 17+), or"
            ' starttls = "postgres" in the route'
        ),
    )


def test_a_route_without_starttls_refuses_who_has_asked(tmp_path, pki, stack, backend):
    server = backend()
    toml = (
        '[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n'
        + route_toml(pki, sni='["pg.example.com"]', extra=POSTGRES)
        + route_toml(pki, sni='["app.example.com"]')
        + pool_toml(pki, [server.address])
    )
    relay = RunningWorker(tmp_path, toml)
    stack.callback(relay.close)
    with raw(relay.port, SSL_REQUEST) as sock:
        assert sock.recv(10) == b"S"
        with pytest.raises((ssl.SSLError, OSError, EOFError)):
            handshake(pki, sock)
    record = relay.record()
    assert (record["reason"], record["detail"]) == (
        "starttls_refused",
        'asked for TLS with SSLRequest, and route app.example.com has no starttls = "postgres"',
    )


def test_an_old_client_reaches_a_server_that_begins_with_tls(start, pki, backend):
    """The server requires the ALPN that such a client does not offer."""
    server = backend(postgresql, alpn=("postgresql",))
    relay = start([server.address], route=POSTGRES)
    with raw(relay.port, SSL_REQUEST) as sock:
        assert sock.recv(10) == b"S"
        peer = handshake(pki, sock)
        peer.send(bytes.fromhex("0000000800030000"))
        assert peer.receive(15)[:1] == b"R"
        peer.send(b"X\0\0\0\x04")
        peer.close()
    wait_until(lambda: server.alpn == ["postgresql"], "the protocol")


# The server's side.


@pytest.fixture
def old_server(pki, stack):
    def make(answer):
        made = stack.enter_context(OldServer(pki, answer))
        return made.address, made.heard

    return make


ANSWERS = {
    "no TLS": (b"N", "backend_no_tls", "the server has no TLS: set ssl = on"),
    "an error": (
        error_response("too many connections"),
        "backend_starttls_error",
        'it answered SSLRequest with an error: "too many connections"',
    ),
    "something behind the answer": (
        b"S\x16\x03\x03",
        "backend_starttls_error",
        "3 bytes followed its answer to SSLRequest before TLS began",
    ),
    "another protocol": (
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        "backend_starttls_error",
        "it answered SSLRequest with b'H'; it is not PostgreSQL",
    ),
    "nothing": (b"", "backend_gone", "it closed the connection instead of answering"),
}


@pytest.mark.parametrize(("answer", "reason", "detail"), ANSWERS.values(), ids=ANSWERS)
def test_any_other_answer_is_a_failed_backend(start, call, old_server, answer, reason, detail):
    address, heard = old_server(answer)
    relay = start([address], pool=POSTGRES)
    client = call(relay)
    with contextlib.suppress(EOFError, OSError, ssl.SSLError):
        client.receive_some()
    record = relay.record()
    assert record["reason"] == reason
    assert detail in record["detail"]
    assert heard == [SSL_REQUEST]


def test_the_next_server_is_tried(start, call, old_server):
    bad, _ = old_server(b"N")
    good, _ = old_server(b"S")
    relay = start([bad, good], pool=POSTGRES)
    for _ in range(2):
        client = call(relay)
        client.send(b"hello")
        assert client.receive(5) == b"hello"
        client.close()
    assert [relay.record(number)["backend"] for number in range(2)] == ["b2", "b2"]


def test_a_server_that_never_answers_has_a_deadline(start, call, stack):
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    relay = start([address], pool=POSTGRES, top="[timeouts]\nconnect_s = 0.5\nhandshake_s = 0.5\n")
    client = call(relay)
    with contextlib.suppress(EOFError, OSError, ssl.SSLError):
        client.receive_some()
    record = relay.record()
    assert record["reason"] in {"backend_timeout", "backend_handshake_timeout"}
    assert "no answer to the request for TLS (SSLRequest)" in record["detail"]


def test_the_proxy_header_comes_before_the_request(start, call, old_server):
    address, heard = old_server(b"S")
    relay = start([address], pool=POSTGRES + 'send_proxy = "v1"\n')
    client = call(relay)
    client.send(b"hello")
    assert client.receive(5) == b"hello"
    assert heard[0].startswith(b"PROXY TCP4 127.0.0.1 ")
    assert heard[0].endswith(b"\r\n" + SSL_REQUEST)

"""A check finds out whether a session would reach the backend, and explains why not."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from datetime import timedelta

import pytest

from relay.core.postgres import SSL_REQUEST
from relay.errors import Reason
from relay.remedies import REMEDIES
from tests.support.crls import COMPROMISED, revoked_set
from tests.support.gateway import wait_until
from tests.support.http import answer, silent, status
from tests.support.ports import held_port
from tests.support.postgres import OldServer

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture
def deaf_port():
    """A port whose queue is full: connections to it are not accepted."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for each in fillers:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        yield port
        for each in fillers:
            each.close()


@pytest.fixture
def mute():
    """A listening socket whose owner never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_good_backend_passes(pki, check, make_backend, version):
    """The result has the TLS version and the end of the backend's certificate."""
    backend = make_backend(version=version)
    result = check(backend.address)
    assert (result.ok, result.label, result.reason) == (True, "ok", "ok")
    assert result.tls_version == f"TLSv1.{3 if version is TLS13 else 2}"
    assert result.not_after_at == int(
        pki.backend.issued.certificate.not_valid_after_utc.timestamp()
    )
    assert result.detail.startswith(f"{result.tls_version} handshake in ")
    assert result.address == backend.address
    (peer,) = wait_until("the backend has seen us", lambda: backend.peers)
    assert peer["subject"] == ((("commonName", "relay machine"),),)


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_revoked_backend_fails(pki, check, make_backend, version):
    certificate = pki.backend.issued.certificate
    cases = {
        "ok": revoked_set(pki.authority),
        "backend_revoked": revoked_set(pki.authority, (certificate, COMPROMISED)),
        "backend_crl_missing": None,
        "backend_crl_expired": revoked_set(
            pki.authority, age=timedelta(days=3), lasts=timedelta(days=1)
        ),
    }
    backend = make_backend(version=version)
    for reason, revoked in cases.items():
        result = check(backend.address, pool={"backend_crl": ["a.crl"]}, revoked=revoked)
        assert result.reason == reason
        if reason == "backend_revoked":
            assert result.detail.startswith(
                'revoked 2026-11-26 (key compromise), CRL 1 of "CN=Test CA" from a.crl, next update'
            )
            assert "the backend's certificate: subject CN=backend" in result.detail
            assert result.remedy == REMEDIES[Reason.BACKEND_REVOKED]


def test_no_check_resumes_a_session(check, make_backend):
    backend = make_backend()
    assert all(check(backend.address).ok for _ in range(3))
    assert (backend.accepted, backend.resumed) == (3, 0)


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ("wrong_name", "backend_wrong_name"),
        ("expired", "backend_expired"),
        ("not_yet_valid", "backend_not_yet_valid"),
        ("wrong_ca", "backend_unknown_ca"),
        ("wrong_purpose", "backend_wrong_purpose"),
        ("self_signed", "backend_unknown_ca"),
    ],
)
def test_a_backend_with_a_wrong_certificate_fails(pki, check, make_backend, files, word):
    result = check(make_backend(files=pki.backend_matrix()[files]).address)
    assert (result.label, result.reason) == ("handshake_failed", word)
    assert "the backend's certificate: subject CN=backend" in result.detail
    assert result.remedy


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("path", ["", "/health"])
def test_a_backend_that_refuses_the_certificate_late_fails(pki, check, make_backend, version, path):
    """In TLS 1.3 the refusal comes after the handshake."""
    result = check(
        make_backend(answer(status(200)), client_ca=pki.foreign_ca, version=version).address,
        http_get=path,
    )
    assert result.reason == "backend_rejected_our_certificate"
    assert result.detail.startswith(
        "the backend sent the alert unknown_ca: it does not say which CAs it accepts; "
        "the machine certificate"
    )
    assert result.remedy.startswith("the backend does not accept the pool's machine_certificate")


def test_a_backend_that_hangs_up_right_after_the_handshake_fails(check, make_backend):
    result = check(make_backend(lambda connection: connection.unwrap(), version=TLS13).address)
    assert (result.label, result.reason) == ("handshake_failed", "backend_gone")
    assert "right after the TLS handshake" in result.detail


def test_a_backend_that_speaks_first_passes_at_once(check, make_backend):
    result = check(
        make_backend(
            lambda connection: (connection.sendall(b"220 hello\r\n"), silent(connection)),
            version=TLS13,
        ).address
    )
    assert result.ok


def test_an_address_without_a_listener_is_refused(check, stack):
    port = stack.enter_context(held_port())
    result = check(f"127.0.0.1:{port}")
    assert (result.label, result.reason, result.detail, result.tls_version) == (
        "connect_failed",
        "backend_refused",
        "Connection refused",
        "",
    )


def test_a_backend_that_does_not_accept_runs_out_of_time(check, deaf_port):
    began = time.monotonic()
    result = check(f"127.0.0.1:{deaf_port}", timeout_s=0.3)
    assert (result.label, result.reason) == ("connect_failed", "backend_timeout")
    assert "within health.timeout_s (0.3 s)" in result.detail
    assert 0.3 <= time.monotonic() - began < 5


def test_a_backend_that_does_not_shake_hands_runs_out_of_time(check, mute):
    result = check(f"127.0.0.1:{mute.getsockname()[1]}", timeout_s=0.3)
    assert (result.label, result.reason) == ("handshake_failed", "backend_handshake_timeout")
    assert "health.timeout_s" in result.remedy


def test_a_backend_that_does_not_speak_tls_fails(check):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk():
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"SSH-2.0-whatever\r\n")
                peer.recv(10_000)

        thread = threading.Thread(target=talk)
        thread.start()
        result = check(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join(20)
    assert (result.label, result.reason) == ("handshake_failed", "backend_not_tls")


def test_a_get_that_is_answered_well_passes(check, make_backend):
    asked = []
    result = check(
        make_backend(answer(status(204), requests=asked)).address, http_get="/health?deep=1"
    )
    assert result.ok
    assert " GET /health?deep=1 answered 204 in " in result.detail
    assert asked == [
        (
            b"GET /health?deep=1 HTTP/1.1\r\nHost: backend.example.com\r\n"
            b"User-Agent: relay-health-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        )
    ]


def test_only_the_final_status_counts(check, make_backend):
    """Also when the head arrives in pieces."""
    pieces = (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTT",
        b"P/1.1 2",
        b"00 OK\r\nX: y\r",
        b"\n\r\n",
    )
    assert check(make_backend(answer(*pieces)).address, http_get="/").ok


@pytest.mark.parametrize(
    ("statuses", "answered", "good"),
    [
        ("200-399", 302, True),
        ("200-399", 404, False),
        ("200, 204", 201, False),
        ("200,400-499", 418, True),
    ],
)
def test_the_statuses_that_are_good_are_configured(check, make_backend, statuses, answered, good):
    result = check(
        make_backend(answer(status(answered))).address, http_get="/x", http_status=statuses
    )
    assert result.ok is good
    if not good:
        assert (result.label, result.reason, result.detail) == (
            "http_failed",
            "http_status",
            f"GET /x answered {answered}",
        )


def test_a_get_that_is_not_answered_runs_out_of_time(check, make_backend):
    result = check(make_backend(silent).address, http_get="/slow", timeout_s=0.4)
    assert (result.label, result.reason) == ("http_failed", "http_timeout")
    assert result.detail == "GET /slow was not answered within health.timeout_s (0.4 s)"


def test_a_backend_that_hangs_up_instead_of_answering_fails(check, make_backend):
    result = check(make_backend(answer()).address, http_get="/x")
    assert (result.label, result.reason) == ("http_failed", "http_gone")


@pytest.mark.parametrize(
    "said", [b"220 mail.example.com ESMTP\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000]
)
def test_an_answer_that_is_not_http_or_never_ends_fails(check, make_backend, said):
    result = check(make_backend(answer(said)).address, http_get="/x")
    assert (result.label, result.reason) == ("http_failed", "not_http")
    assert "\n" not in result.detail


def test_a_check_offers_the_protocol_of_the_routes(check, make_backend):
    """With a GET it offers http/1.1."""
    backend = make_backend(answer(status(200)), alpn=("postgresql", "http/1.1"))
    assert check(backend.address, route={"alpn": ["postgresql"]}).ok
    assert check(backend.address, route={"alpn": ["h2", "http/1.1"]}, http_get="/").ok
    assert check(backend.address).ok
    assert backend.alpn == ["postgresql", "http/1.1", None]


POSTGRES = {
    b"S": ("ok", "ok"),
    b"N": ("handshake_failed", "backend_no_tls"),
    b"S\x16": ("handshake_failed", "backend_starttls_error"),
    b"HTTP/1.1 400 Bad Request\r\n\r\n": ("handshake_failed", "backend_starttls_error"),
    b"": ("handshake_failed", "backend_gone"),
}


@pytest.mark.parametrize(("said", "expected"), POSTGRES.items(), ids=map(repr, POSTGRES))
def test_a_check_asks_postgresql_for_tls(check, pki, said, expected):
    with OldServer(pki, said) as server:
        result = check(server.address, pool={"starttls": "postgres"})
        assert (result.label, result.reason) == expected
        assert server.heard == [SSL_REQUEST]


def test_a_check_of_postgresql_has_a_deadline(check, mute):
    address = f"127.0.0.1:{mute.getsockname()[1]}"
    result = check(address, pool={"starttls": "postgres"}, timeout_s=0.2)
    assert (result.label, result.reason) == ("handshake_failed", "backend_handshake_timeout")


@pytest.mark.parametrize(("source", "expected"), [("127.0.0.9", True), ("192.0.2.1", False)])
def test_a_check_comes_from_the_source_address(check, make_backend, source, expected):
    result = check(make_backend().address, pool={"source": source})
    assert result.ok is expected
    assert expected or (result.reason, "from 192.0.2.1: Cannot" in result.detail) == (
        "no_resources",
        True,
    )


@pytest.mark.parametrize(
    ("sni", "expected"),
    [("", "backend.example.com"), ("client", "backend.example.com"), ("x.example", "x.example")],
)
def test_a_check_sends_the_server_name(check, make_backend, sni, expected):
    backend, names = make_backend(), []
    backend.context.sni_callback = lambda _sock, name, _context: names.append(name)
    assert check(backend.address, pool={"sni": sni} if sni else None).ok
    assert names == [expected]


@pytest.mark.parametrize(
    ("version", "hello"),
    [("v1", b"PROXY UNKNOWN\r\n"), ("v2", b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")],
)
def test_a_check_sends_a_proxy_header_without_a_client(check, mute, version, hello):
    result = check(
        f"127.0.0.1:{mute.getsockname()[1]}", timeout_s=0.3, settings={"send_proxy": version}
    )
    assert result.reason == "backend_handshake_timeout"
    peer, _ = mute.accept()
    with peer:
        received = peer.recv(4096)
    assert received.startswith(hello + b"\x16\x03")  # a ClientHello follows


def test_a_check_sends_the_header_inside_tls(check, make_backend):
    seen = []

    def serve(connection):
        seen.append(connection.recv(16))
        answer(status(200))(connection)

    backend = make_backend(serve)
    assert check(backend.address, settings={"send_proxy": "v2-inside-tls"}, http_get="/").ok
    assert seen == [b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"]


def test_a_backend_passes_when_one_of_its_addresses_does(check, make_backend, stack):
    backend = make_backend()
    dead = ("127.0.0.1", stack.enter_context(held_port()))
    endpoints = tuple(
        (socket.AF_INET, address) for address in (dead, ("127.0.0.1", backend.port), dead)
    )
    result = check(backend.address, endpoints=endpoints)
    assert (result.ok, result.endpoint, result.address) == (True, 1, backend.address)
    last = check(backend.address, endpoints=(endpoints[0], endpoints[0]), first=1)
    assert (last.reason, last.endpoint) == ("backend_refused", 0)

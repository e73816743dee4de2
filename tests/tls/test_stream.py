"""One TLS connection: handshakes in steps, failures, and no leftovers."""

import contextlib
import errno
import gc
import resource
import socket
import ssl
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.demo.ca import LeafSpec, self_signed
from relay.errors import Reason, Side
from relay.tls import identity, stream, verification
from relay.tls.explain import Failure
from relay.tls.identity import admit
from relay.tls.raw import NULL, ffi, lib
from tests.support.handshakes import (
    MOST_STEPS,
    NAME,
    TLS12,
    TLS13,
    VERSIONS,
    accept_on,
    begin_session,
    client_context,
    meet_backend,
    meet_client,
    reset,
    route_of,
    server_context,
    session_of,
    socket_pair,
    target_of,
    tcp_pair,
    wait_readable,
)

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
both_sides = pytest.mark.parametrize("side", Side)


def begin(pki, side, ours):
    if side is Side.INBOUND:
        return accept_on(route_of(pki), ours)
    target = target_of(pki)
    connection = stream.connect(target.context, ours.fileno(), target.server_name, b"", None)
    assert stream.handshake(connection, side) is stream.STEP_WANT_READ
    return connection


def until_failed(connection, side, ours):
    for _ in range(MOST_STEPS):
        wait_readable(ours)
        result = stream.handshake(connection, side)
        if isinstance(result, Failure):
            return result
        assert result is stream.STEP_WANT_READ
    raise AssertionError("the handshake goes on")


# (what the peer sends before its end of file, the reason inbound, the reason outbound)
STRANGE = {
    "nothing": (b"", "peer_gone", "backend_gone"),
    "half a record": (b"\x16\3\1\2", "peer_gone", "backend_gone"),
    "a request": (b"GET / HTTP/1.0\r\n\r\n", "plain_http", "backend_not_tls"),
    "a proxy request": (b"CONNECT a:443 HTTP/1.1\r\n\r\n", "plain_http", "backend_not_tls"),
    "a response": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "tls_error", "backend_not_tls"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", "tls_error", "backend_not_tls"),
    "zeros": (bytes(1000), "tls_error", "backend_not_tls"),
    "a record too long": (b"\x16\3\1\xff\xff" + bytes(1000), "tls_error", "backend_tls_error"),
    "an alert": (b"\x15\3\3\0\2\2\x28", "tls_error", "backend_no_shared_cipher"),
}


@both_sides
@pytest.mark.parametrize("kind", STRANGE)
def test_other_bytes_have_a_reason_and_leave_no_error(pki, side, kind):
    data, inbound, outbound = STRANGE[kind]
    ours, theirs = tcp_pair()
    with ours, theirs:
        connection = begin(pki, side, ours)
        theirs.send(data)
        theirs.shutdown(socket.SHUT_WR)
        failure = until_failed(connection, side, ours)
        assert failure.reason == (inbound if side is Side.INBOUND else outbound)
        assert failure.detail
        assert verification.refused_identity() is None
        assert lib.ERR_peek_error() == 0
        stream.free(connection, established=False)


@both_sides
def test_a_reset_in_the_handshake_is_a_peer_that_has_gone(pki, side):
    ours, theirs = tcp_pair()
    with ours:
        connection = begin(pki, side, ours)
        reset(theirs)
        assert until_failed(connection, side, ours) == Failure(
            Reason.PEER_GONE if side is Side.INBOUND else Reason.BACKEND_GONE,
            "Connection reset by peer",
        )
        assert lib.ERR_peek_error() == 0
        stream.free(connection, established=False)


def leave_error(number=199, library=lib.ERR_LIB_EVP):
    """Leave an error in OpenSSL's queue, like an uncleared failure of another
    connection.
    """
    lib.ERR_put_error(library, 0, number, NULL, 0)
    assert lib.ERR_peek_error() != 0


@both_versions
def test_a_stale_error_is_never_blamed_on_a_handshake(pki, version):
    route, context = route_of(pki), client_context(pki, pki.client, version)
    ours, theirs = socket_pair()
    with ours:
        connection = accept_on(route, ours)
        peer = context.wrap_socket(theirs, server_hostname=NAME, do_handshake_on_connect=False)
        with peer:
            for _ in range(MOST_STEPS):
                leave_error()
                result = stream.handshake(connection, Side.INBOUND)
                if result is stream.DONE:
                    break
                assert result is stream.STEP_WANT_READ
                try:
                    peer.do_handshake()
                except ssl.SSLWantReadError:
                    assert lib.ERR_peek_error() == 0
            assert result is stream.DONE
            assert lib.ERR_peek_error() == 0
            stream.free(connection, established=True)


def test_a_stale_error_is_not_reported_for_a_reset_or_a_refusal(pki):
    ours, theirs = tcp_pair()
    with ours:
        connection = begin(pki, Side.INBOUND, ours)
        reset(theirs)
        wait_readable(ours)
        leave_error()
        assert stream.handshake(connection, Side.INBOUND) == Failure(
            Reason.PEER_GONE, "Connection reset by peer"
        )
        stream.free(connection, established=False)
    leave_error()
    with meet_client(route_of(pki), client_context(pki, pki.client_expired)) as meeting:
        assert meeting.reason == "expired"


@both_sides
def test_a_refused_certificate_is_forgotten_by_the_next_handshake(pki, side):
    with meet_client(route_of(pki), client_context(pki, pki.client_foreign)) as meeting:
        assert meeting.reason == "unknown_ca"
        assert verification.refused_identity().subject == "CN=mallory"
    ours, theirs = tcp_pair()
    with ours, theirs:
        connection = begin(pki, side, ours)
        theirs.shutdown(socket.SHUT_WR)
        until_failed(connection, side, ours)
        assert verification.refused_identity() is None
        stream.free(connection, established=False)


@both_versions
def test_a_check_refuses_in_the_handshake_with_an_alert(pki, version):
    asked = []

    def check(who):
        asked.append(who.subject)
        return Failure(Reason.NOT_ALLOWED, "not this one")

    with meet_client(
        route_of(pki), client_context(pki, pki.client, version), check=check
    ) as meeting:
        assert meeting.result == Failure(Reason.NOT_ALLOWED, "not this one")
        assert (meeting.identity.subject, meeting.alert) == (
            "CN=alice",
            "SSLV3_ALERT_BAD_CERTIFICATE",
        )
    assert asked == ["CN=alice"]


@both_versions
def test_a_check_is_asked_only_about_a_leaf_that_openssl_accepts(pki, version):
    asked = []
    route = route_of(pki)
    for kind, files in pki.client_matrix().items():
        with meet_client(
            route, client_context(pki, files, version), check=lambda who: asked.append(who.subject)
        ) as meeting:
            assert (meeting.reason == "done") is (kind in {"good", "intermediate_sent"})
    assert asked == ["CN=alice", "CN=ingrid"]


def test_a_check_that_raises_refuses_and_the_caller_gets_the_exception(pki):
    def broken(_who):
        raise ZeroDivisionError("in the check")

    route, context = route_of(pki), client_context(pki, pki.client)
    ours, theirs = socket_pair()
    connection = accept_on(route, ours)
    with (
        ours,
        context.wrap_socket(theirs, server_hostname=NAME, do_handshake_on_connect=False) as peer,
    ):
        with pytest.raises(ssl.SSLWantReadError):
            peer.do_handshake()
        assert stream.handshake(connection, Side.INBOUND, broken) is stream.STEP_WANT_READ
        peer.do_handshake()
        with pytest.raises(ZeroDivisionError, match="in the check"):
            stream.handshake(connection, Side.INBOUND, broken)
        assert lib.ERR_peek_error() == 0
        with pytest.raises(ssl.SSLError, match="ALERT"):
            peer.recv(1)
    stream.free(connection, established=False)
    with meet_client(route, context, check=lambda _who: None) as meeting:
        assert meeting.reason == "done"


@both_versions
def test_the_accepted_identity_is_that_of_this_step(pki, version):
    route, context = route_of(pki), client_context(pki, pki.client, version)
    with meet_client(route, context, check=lambda _who: None) as meeting:
        assert meeting.accepted == meeting.identity
        assert meeting.accepted.cn == ("alice",)
        session = session_of(meeting)
    with meet_client(route, context, session=session, check=lambda _who: None) as meeting:
        assert (meeting.reason, meeting.resumed, meeting.accepted) == ("done", True, None)
    with meet_client(route, context) as meeting:  # no check was called
        assert (meeting.reason, meeting.accepted) == ("done", None)
    with meet_client(route, context, check=lambda _who: Failure(Reason.NOT_ALLOWED)) as meeting:
        assert (meeting.reason, meeting.accepted) == ("not_allowed", None)


ALERTS = {
    Reason.NOT_ALLOWED: "SSLV3_ALERT_BAD_CERTIFICATE",
    Reason.CRL_MISSING: "SSLV3_ALERT_BAD_CERTIFICATE",
    Reason.REVOKED: "SSLV3_ALERT_CERTIFICATE_REVOKED",
}


@both_versions
@pytest.mark.parametrize("reason", ALERTS)
def test_a_refused_client_gets_the_alert_of_the_reason(pki, version, reason):
    route, context = route_of(pki), client_context(pki, pki.client, version)
    session = begin_session(route, context)
    for offered in (None, session):
        with meet_client(
            route, context, session=offered, check=lambda _who: Failure(reason, "why")
        ) as meeting:
            assert (meeting.result, meeting.alert) == (Failure(reason, "why"), ALERTS[reason])


@both_versions
def test_a_client_refused_on_resumption_reads_no_data(pki, version):
    route, context = route_of(pki), client_context(pki, pki.client, version)
    with meet_client(route, context) as meeting:
        session = session_of(meeting)
    with meet_client(route, context, session=session) as meeting:
        assert meeting.resumed
        stream.close_notify(meeting.ssl)
        meeting.sock.shutdown(socket.SHUT_WR)
        assert meeting.peer.recv(10) == b""


@both_versions
def test_close_notify_without_a_finished_handshake_is_harmless(pki, version):
    with meet_client(route_of(pki), client_context(pki, None, version)) as meeting:
        stream.close_notify(meeting.ssl)
        assert lib.ERR_peek_error() == 0
    ours, theirs = socket_pair()
    with ours, theirs:
        connection = accept_on(route_of(pki), ours)
        stream.close_notify(connection)
        assert lib.ERR_peek_error() == 0
        stream.free(connection, established=False)


def test_the_server_name_is_lower_case_without_the_final_dot(pki):
    context = client_context(pki, pki.client)
    context.check_hostname = False
    for sent, seen in (
        ("APP.Example.COM", "app.example.com"),
        ("app.example.com.", "app.example.com"),
        (None, ""),
    ):
        with meet_client(route_of(pki), context, name=sent) as meeting:
            assert stream.server_name(meeting.ssl) == seen


def test_random_bytes_on_accept_are_a_failure_or_a_wait_for_more(pki):
    route = route_of(pki)
    record = st.builds(
        lambda kind, body: bytes((kind, 3, 1)) + len(body).to_bytes(2, "big") + body,
        st.sampled_from((20, 21, 22, 23, 24)),
        st.binary(max_size=200),
    )
    message = st.builds(
        lambda kind, body: bytes((kind,)) + len(body).to_bytes(3, "big") + body,
        st.integers(0, 24),
        st.binary(max_size=100),
    )
    hello = st.builds(lambda body: b"\x16\3\1" + len(body).to_bytes(2, "big") + body, message)
    pieces = st.lists(st.one_of(st.binary(max_size=300), record, hello), min_size=1, max_size=6)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(pieces)
    def holds(pieces):
        ours, theirs = socket_pair()
        with ours, theirs:
            connection = accept_on(route, ours)
            for piece in pieces:
                theirs.send(piece)
                result = stream.handshake(connection, Side.INBOUND)
                assert lib.ERR_peek_error() == 0
                if result is not stream.STEP_WANT_READ:
                    assert isinstance(result, Failure)
                    assert result.reason in Reason
                    break
            stream.free(connection, established=False)
            assert lib.ERR_peek_error() == 0

    holds()


def test_a_hello_with_flipped_bits_is_never_more_than_a_failure(pki):
    route = route_of(pki)
    sent, into = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(pki, pki.client).wrap_bio(into, sent, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = sent.read()

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(0, len(hello) - 1), st.integers(1, 255)), min_size=1, max_size=4
        )
    )
    def holds(flips):
        bent = bytearray(hello)
        for at, mask in flips:
            bent[at] ^= mask
        ours, theirs = socket_pair()
        with ours, theirs:
            connection = accept_on(route, ours)
            theirs.send(bent)
            result = stream.handshake(connection, Side.INBOUND)
            assert result is stream.STEP_WANT_READ or isinstance(result, Failure)
            assert lib.ERR_peek_error() == 0
            stream.free(connection, established=False)

    holds()


@both_versions
def test_untrusted_certificates_are_named_but_not_cached(pki, version):
    route = route_of(pki)
    identity._known.clear()
    for number in range(20):
        files = pki.write(
            self_signed(
                LeafSpec(
                    f"stranger {number}", dns=tuple(f"{'x' * 60}.{i}.example" for i in range(100))
                )
            )
        )
        with meet_client(route, client_context(pki, files, version)) as meeting:
            assert (meeting.reason, meeting.identity.subject) == (
                "unknown_ca",
                f"CN=stranger {number}",
            )
    assert identity._known == {}
    with meet_client(route, client_context(pki, pki.client, version)) as meeting:
        assert meeting.reason == "done"
    assert len(identity._known) == 1


def private_bytes():
    """Anonymous resident memory of this process."""
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * resource.getpagesize()


def test_two_thousand_handshakes_leak_nothing(pki):
    route, target = route_of(pki), target_of(pki)
    backend = server_context(pki, pki.backend)
    # One context for all connections of a client, as the stdlib's contexts are large.
    clients = [
        client_context(pki, files, version)
        for version in VERSIONS.values()
        for files in (pki.client, None, pki.client_foreign)
    ]

    def by_the_rules(who):
        return admit(who, route.trust, who.not_before_at + 1)

    def round_of_ten():
        for context in clients:
            with meet_client(route, context, check=by_the_rules):
                pass
        with meet_client(route, clients[0], check=by_the_rules) as meeting:
            session = session_of(meeting)
        with meet_client(route, clients[0], session=session) as meeting:
            assert meeting.resumed
        with meet_backend(target, backend):
            pass
        ours, theirs = socket_pair()
        with ours, theirs:
            connection = accept_on(route, ours)
            theirs.send(b"\x16\3\1\0\5hello")
            assert isinstance(stream.handshake(connection, Side.INBOUND), Failure)
            stream.free(connection, established=False)

    gc.collect()
    gc.disable()
    try:
        for _ in range(30):
            round_of_ten()
        # A leak grows in both halves; the memory of earlier tests moves in one of them.
        growths = []
        for _ in range(2):
            before_bytes, before_objects = private_bytes(), len(gc.get_objects())
            for _ in range(100):
                round_of_ten()
            assert len(gc.get_objects()) - before_objects < 25
            growths.append(private_bytes() - before_bytes)
        assert min(growths) < 1_000_000
    finally:
        gc.enable()


@both_versions
def test_a_handshake_makes_no_garbage_for_the_collector(pki, version):
    route, context = route_of(pki), client_context(pki, pki.client, version)

    def connect_once():
        ours, theirs = socket_pair()
        peer = context.wrap_socket(theirs, server_hostname=NAME, do_handshake_on_connect=False)
        connection = accept_on(route, ours)
        result = stream.STEP_WANT_READ
        done = False
        while not done or result is not stream.DONE:
            try:
                peer.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            result = (
                result
                if result is stream.DONE
                else stream.handshake(connection, Side.INBOUND, lambda _who: None)
            )
        stream.free(connection, established=True)
        ours.close()
        peer.close()

    connect_once()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(100):
            connect_once()
        assert len(gc.get_objects()) - before < 20
    finally:
        gc.enable()


def test_errno_is_that_of_the_call_that_failed(pki):
    ours, theirs = tcp_pair()
    with ours:
        connection = begin(pki, Side.INBOUND, ours)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        ffi.errno = errno.EACCES
        theirs.close()
        wait_readable(ours)
        assert stream.handshake(connection, Side.INBOUND) == Failure(
            Reason.PEER_GONE, "the connection was closed"
        )
        stream.free(connection, established=False)


@pytest.mark.parametrize("context_version", [TLS12, TLS13])
def test_a_handshake_continues_after_a_full_socket(pki, context_version):
    route, context = route_of(pki), client_context(pki, pki.client, context_version)
    ours, theirs = socket_pair()
    connection = accept_on(route, ours)
    with (
        ours,
        context.wrap_socket(theirs, server_hostname=NAME, do_handshake_on_connect=False) as peer,
    ):
        with pytest.raises(ssl.SSLWantReadError):
            peer.do_handshake()
        raw = socket.socket(
            fileno=socket.dup(peer.fileno())
        )  # to read what blocks the connection, below TLS
        raw.setblocking(False)
        filler = 0
        with contextlib.suppress(BlockingIOError):
            for _ in range(10_000):
                filler += ours.send(bytes(4096))
        assert stream.handshake(connection, Side.INBOUND) is stream.STEP_WANT_WRITE
        while filler:
            filler -= len(raw.recv(min(filler, 65536)))
        raw.close()
        done = False
        result = stream.handshake(connection, Side.INBOUND)
        for _ in range(MOST_STEPS):
            if not done:
                try:
                    peer.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    pass
            if result is not stream.DONE:
                result = stream.handshake(connection, Side.INBOUND)
        assert done
        assert result is stream.DONE
        stream.free(connection, established=True)

"""Session resumption with clients and backends, and what it must not allow."""

import os
import socket
import ssl
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace

import pytest

from relay.config.section import Crl
from relay.demo.ca import LeafSpec
from relay.errors import Reason, Side
from relay.shared.entities import entities_of
from relay.tls import stream
from relay.tls.explain import Failure
from relay.tls.identity import admit, peer_identity
from relay.tls.raw import ffi, lib
from relay.tls.trust import CrlPolicy
from relay.worker.backend import RENEW_S, BackendPeer, BackendState
from tests.support.crls import revoked_set
from tests.support.handshakes import (
    NAME,
    PATIENCE_S,
    TLS12,
    TLS13,
    VERSIONS,
    accept_on,
    allow,
    begin_session,
    client_context,
    config_of,
    generation_of,
    meet_backend,
    meet_client,
    route_of,
    server_context,
    session_of,
    target_of,
)
from tests.support.scoreboard import scoreboard_of

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


@both_versions
def test_a_client_resumes_in_its_route_with_identity_and_name_known(pki, version):
    route, context = route_of(pki), client_context(pki, pki.client_spiffe, version)
    with meet_client(route, context) as meeting:
        assert not meeting.resumed
        first = meeting.identity
        session = session_of(meeting)
    for _ in range(3):
        with meet_client(route, context, session=session) as meeting:
            assert meeting.resumed
            assert meeting.peer.session_reused
            assert meeting.identity == first
            assert stream.server_name(meeting.ssl) == NAME
            session = session_of(meeting)


@both_versions
def test_a_client_resumes_without_a_server_name(pki, version):
    route, context = route_of(pki), client_context(pki, pki.client, version)
    context.check_hostname = False
    with meet_client(route, context, name=None) as meeting:
        session = session_of(meeting)
    with meet_client(route, context, name=None, session=session) as meeting:
        assert (meeting.resumed, stream.server_name(meeting.ssl)) == (True, "")


def test_a_tls_12_session_of_another_name_reports_that_name(pki):
    route = route_of(pki, sni=("*.example.com",))
    for version, seen in ((TLS12, "a.example.com"), (TLS13, "b.example.com")):
        context = client_context(pki, pki.client, version)
        with meet_client(route, context, name="a.example.com") as meeting:
            session = session_of(meeting)
        with meet_client(route, context, name="b.example.com", session=session) as meeting:
            # RFC 6066, 3 forbids this to a TLS 1.2 client; in TLS 1.3 the name is not
            # part of the session (RFC 8446, 4.6.1).
            assert (meeting.resumed, stream.server_name(meeting.ssl)) == (True, seen)


@both_versions
def test_a_session_of_one_route_does_not_resume_at_another(pki, version):
    routes = (
        {"sni": ("a.example.com",)},
        {"sni": ("b.example.com",), "client_ca": pki.foreign_ca},
        {"sni": (NAME,)},
    )
    table = generation_of(pki, routes=routes).routes["https"]
    context = client_context(pki, pki.client, version)
    with meet_client(table.find("a.example.com"), context, name="a.example.com") as meeting:
        session = session_of(meeting)
    # The other CA's route does a full handshake, and refuses the certificate in it.
    with meet_client(
        table.find("b.example.com"), context, name="b.example.com", session=session
    ) as meeting:
        assert (meeting.reason, meeting.alert) == ("unknown_ca", "TLSV1_ALERT_UNKNOWN_CA")
    # The same CA at another route: a full handshake as well.
    with meet_client(table.find(NAME), context, session=session) as meeting:
        assert (meeting.reason, meeting.resumed) == ("done", False)
    with meet_client(
        table.find("a.example.com"), context, name="a.example.com", session=session
    ) as meeting:
        assert meeting.resumed


@both_versions
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("lists", "given"),
    [
        ({}, True),
        ({"missing": "accept"}, False),
        ({"from_certificates": True, "hosts": ("pki.test",)}, False),
    ],
)
def test_lists_that_may_not_cover_a_sent_issuer_end_tickets(pki, version, lists, given, named):
    # In TLS 1.2 the ticket is promised before the client's chain is seen.
    route = route_of(pki, crl=Crl(files=(pki.directory / "a.crl",), **lists))
    context = client_context(pki, pki.client, version)
    context.check_hostname = False
    name = NAME if named else None
    with meet_client(route, context, name=name, check=lambda _who: None) as meeting:
        session = session_of(meeting)
    expected = given or version is TLS13
    assert session.has_ticket == expected
    with meet_client(
        route, context, name=name, session=session, check=lambda _who: None
    ) as meeting:
        assert (meeting.reason, meeting.resumed) == ("done", expected)


def test_a_file_without_a_cas_issuer_ends_tls_12_tickets_with_lists(pki, tmp_path):
    ca = pki.intermediate.write(tmp_path / "cas.pem")
    ca.write_bytes(ca.read_bytes() + pki.foreign_ca.read_bytes())
    crl = Crl(files=(pki.directory / "a.crl",))
    for lists, closed in ((None, False), (crl, False), (crl, True)):
        if closed:
            ca.write_bytes(ca.read_bytes() + pki.ca.read_bytes())
        route = route_of(pki, crl=lists, client_ca=ca)
        foreign = client_context(pki, pki.client_foreign, TLS12)
        with meet_client(route, foreign, check=lambda _who: None) as meeting:
            assert session_of(meeting).has_ticket == (closed or lists is None)


@both_versions
def test_the_contexts_of_a_new_generation_refuse_old_tickets(pki, version):
    old, new = (generation_of(pki, number).routes["https"].find(NAME) for number in (1, 2))
    context = client_context(pki, pki.client, version)
    with meet_client(old, context) as meeting:
        session = session_of(meeting)
    with meet_client(new, context, session=session) as meeting:
        assert (meeting.reason, meeting.resumed) == ("done", False)
    with meet_client(old, context, session=session) as meeting:
        assert meeting.resumed


@contextmanager
def served_by_a_child(route):
    """A socket to a forked process that accepts TLS and reports whether it resumed."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            theirs.close()
            connection = accept_on(route, ours)  # blocking: the handshake is one step
            assert stream.handshake(connection, Side.INBOUND) is stream.DONE
            said = b"resumed" if stream.resumed(connection) else b"full"
            assert lib.SSL_write(connection, said, len(said)) == len(said)
            lib.SSL_read(connection, ffi.new("char[1]"), 1)
            stream.free(connection, established=True)
            code = 0
        except BaseException:  # noqa: BLE001 (a forked child must not return into pytest)
            traceback.print_exc()
        finally:
            os._exit(code)
    ours.close()
    try:
        yield theirs
    finally:
        theirs.close()
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0


@both_versions
def test_one_forked_process_resumes_anothers_session(pki, version):
    route, context = route_of(pki), client_context(pki, pki.client, version)
    with (
        served_by_a_child(route) as theirs,
        context.wrap_socket(theirs, server_hostname=NAME) as peer,
    ):
        assert peer.recv(100) == b"full"
        session = peer.session
    with (
        served_by_a_child(route) as theirs,
        context.wrap_socket(theirs, server_hostname=NAME, session=session) as peer,
    ):
        assert peer.recv(100) == b"resumed"
    with meet_client(route, context, session=session) as meeting:
        assert meeting.resumed


@both_versions
def test_rules_and_dates_are_checked_after_a_resumption(pki, version):
    route = route_of(pki, allow=allow(cn=("alice",)))
    context = client_context(pki, pki.client, version)
    session = begin_session(route, context)
    with meet_client(route, context, session=session) as meeting:
        assert meeting.resumed
        who = peer_identity(meeting.ssl)
    assert admit(who, route.trust, time.time()) is None
    assert admit(who, route.trust, who.not_after_at + 1) == Failure(
        Reason.EXPIRED, "certificate has expired"
    )
    assert admit(who, route.trust, who.not_before_at - 1) == Failure(
        Reason.NOT_YET_VALID, "certificate is not yet valid"
    )
    # The same session under rules without this client, and with a CA that expires
    # first.
    refusal = admit(who, route_of(pki, allow=allow(cn=("bob",))).trust, time.time())
    assert refusal.reason is Reason.NOT_ALLOWED
    assert "names in the certificate: alice; SHA-256 " in refusal.detail


@both_versions
def test_a_client_without_a_certificate_gets_no_session_to_resume(pki, version):
    route, context = route_of(pki), client_context(pki, None, version)
    with meet_client(route, context) as meeting:
        assert meeting.reason == "no_certificate"
        session = meeting.peer.session
    if session is not None:
        with meet_client(route, context, session=session) as meeting:
            assert meeting.reason == "no_certificate"


def member_of(pki, **pool):
    config = config_of(pki, **pool)
    return BackendState(0, target_of(pki, **pool), scoreboard_of(entities_of(config)).layout)


def keep(member, meeting, *, resumed=False, now_at=None):
    """Keep the session, as a worker does after the backend's first answer."""
    peer = member.resumable.peer
    if not resumed:
        peer = BackendPeer(meeting.identity, meeting.chain, member.target.trust)
    member.keep_session(
        member.resumable, meeting.ssl, peer, resumed=resumed, now_at=now_at or time.time()
    )


def admit_backend(member, who):
    """What a worker asks for in a full handshake."""
    end = SimpleNamespace(trust=member.target.trust, peer=None)
    found = member.admit(end, who)
    assert end.peer.identity is who
    return found


def backend_says(meeting, word=b"reply"):
    """Read something from the backend, and with it the TLS 1.3 ticket."""
    meeting.peer.send(word)
    buffer = ffi.new("char[100]")
    size = 0
    for _ in range(4):  # two tickets may come first, and each needs a read of its own
        size = lib.SSL_read(meeting.ssl, buffer, 100)
        if size > 0:
            break
    assert ffi.buffer(buffer, size)[:] == word


@both_versions
def test_connections_to_a_backend_resume(pki, version):
    member, context = member_of(pki), server_context(pki, pki.backend, version)
    assert member.session_to_resume(member.resumable, time.time()) is None
    with meet_backend(member.target, context) as meeting:
        backend_says(meeting)
        keep(member, meeting, resumed=meeting.resumed)
    for _ in range(3):
        with meet_backend(
            member.target, context, session=member.session_to_resume(member.resumable, time.time())
        ) as meeting:
            assert meeting.resumed
            assert meeting.peer.session_reused
            backend_says(meeting)


@both_versions
def test_an_old_session_is_renewed_by_a_resumed_connection(pki, version):
    member, context, now_at = member_of(pki), server_context(pki, pki.backend, version), time.time()
    with meet_backend(member.target, context) as meeting:
        backend_says(meeting)
        keep(member, meeting, now_at=now_at)
    first, until_at = member.resumable.session, member.resumable.valid_until_at
    for later_s, kept in ((1, True), (RENEW_S + 1, False)):
        with meet_backend(
            member.target,
            context,
            session=member.session_to_resume(member.resumable, now_at + later_s),
        ) as meeting:
            assert meeting.resumed
            backend_says(meeting)
            keep(member, meeting, resumed=True, now_at=now_at + later_s)
        assert (member.resumable.session is first) is kept
    # The chain was verified in the first handshake; a resumption does not extend it.
    assert member.resumable.valid_until_at == until_at
    with meet_backend(
        member.target,
        context,
        session=member.session_to_resume(member.resumable, now_at + RENEW_S + 2),
    ) as meeting:
        assert meeting.resumed


@both_versions
@pytest.mark.parametrize("shortest", ["leaf", "intermediate", "root"])
def test_no_session_outlives_its_verified_chain(pki, version, shortest, tmp_path):
    ends = {"leaf": 30, "intermediate": 30, "root": 30} | {shortest: 2}
    until = {
        which: datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
        for which, days in ends.items()
    }
    root = type(pki.authority).root("Short root", not_after=until["root"])
    issued = root.intermediate("Short intermediate", not_after=until["intermediate"]).issue(
        LeafSpec(
            "backend", dns=("backend.example.com",), purposes=("server",), not_after=until["leaf"]
        )
    )
    member = member_of(pki, backend_ca=root.write(tmp_path / "root.pem"))
    with meet_backend(member.target, server_context(pki, pki.write(issued), version)) as meeting:
        backend_says(meeting)
        keep(member, meeting)
    end_at = until[shortest].timestamp()
    assert member.resumable.valid_until_at == end_at
    assert member.session_to_resume(member.resumable, end_at - 1) is not None
    assert member.session_to_resume(member.resumable, end_at) is None
    assert member.session_to_resume(member.resumable, end_at + 1) is None


@both_versions
def test_a_backend_without_tickets_costs_only_a_full_handshake(pki, version):
    member, context = member_of(pki), server_context(pki, pki.backend, version)
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    for _ in range(2):
        with meet_backend(
            member.target, context, session=member.session_to_resume(member.resumable, time.time())
        ) as meeting:
            assert meeting.reason == "done"
            backend_says(meeting)
            keep(member, meeting, resumed=meeting.resumed)


@both_versions
def test_a_restarted_backend_is_verified_in_a_full_handshake(pki, version):
    member = member_of(pki)
    with meet_backend(member.target, server_context(pki, pki.backend, version)) as meeting:
        backend_says(meeting)
        keep(member, meeting)
    for files, reason in (
        (pki.backend, "done"),
        (pki.backend_wrong_name, "backend_wrong_name"),
        (pki.backend_foreign, "backend_unknown_ca"),
    ):
        with meet_backend(
            member.target,
            server_context(pki, files, version),
            session=member.session_to_resume(member.resumable, time.time()),
        ) as meeting:
            assert (meeting.reason, meeting.resumed) == (reason, False)


@both_versions
@pytest.mark.parametrize("change", ["nothing", "revoked", "no list", "other CAs"])
def test_a_kept_session_is_judged_before_it_is_offered(pki, version, change):
    member = member_of(pki)
    member.target.trust = replace(member.target.trust, crl=CrlPolicy())
    member.target.revoked = revoked_set(pki.authority)
    context = server_context(pki, pki.backend, version)
    with meet_backend(member.target, context, check=partial(admit_backend, member)) as meeting:
        assert meeting.reason == "done"
        backend_says(meeting)
        keep(member, meeting)
    certificate = pki.backend.issued.certificate
    if change == "revoked":
        member.target.revoked = revoked_set(pki.authority, certificate)
    elif change == "no list":
        member.target.revoked = None
    elif change == "other CAs":
        member.target.trust = replace(member.target.trust)
    offered = member.session_to_resume(member.resumable, time.time())
    assert (offered is not None) == (change == "nothing")
    with meet_backend(
        member.target, context, session=offered, check=partial(admit_backend, member)
    ) as meeting:
        expected = {"revoked": "backend_revoked", "no list": "backend_crl_missing"}
        assert meeting.reason == expected.get(change, "done")
        assert meeting.resumed == (change == "nothing")

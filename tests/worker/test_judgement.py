"""Sessions that are judged again when their route's trust changes, in one worker."""

import contextlib
import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest

from relay.config.listener_model import Allow, Deny
from relay.demo.ca import Authority, LeafSpec
from relay.tls.access_rules import compile_rules
from relay.tls.trust import BackendTrust, CaTrust, ClientTrust
from relay.tls.trust_store import valid_until
from relay.tls.trust_update import TrustUpdate
from relay.worker import expiry
from tests.support.clock import Clock
from tests.support.judged import judge, make_sessions
from tests.support.peer import Peer, dial
from tests.support.pki import BACKEND_NAME, parsed, write
from tests.support.renewals import renewal
from tests.support.worker import client_context, connect, receive

ROUTE = ("https", "default")
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def two_cas(pki, tmp_path):
    """A CA file with both test CAs."""
    file = tmp_path / "both.pem"
    file.write_bytes(pki.ca.read_bytes() + pki.foreign_ca.read_bytes())
    return file


def echoes(client):
    client.send(b"hello")
    return client.receive(5) == b"hello"


def reasons(relay, count):
    return [relay.record(i)["reason"] for i in range(count)]


def trust_of(*authorities, allow=None, deny=None):
    certificates = [parsed(each.certificate) for each in authorities]
    rules = compile_rules(allow or Allow(), deny or Deny())
    return ClientTrust(rules, CaTrust.of(certificates, valid_until(certificates)))


def ask(relay, context, session=None):
    with connect(relay.port, context, session=session) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        found = client.session
        client.unwrap()
        return found


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_of_a_removed_ca_end_within_a_second(start, backend, pki, call, two_cas, version):
    relay = start([backend().address])
    relay.update(renewal(cas=(pki.ca, two_cas)))
    foreign = client_context(pki, pki.client_foreign, version=version)
    session = ask(relay, foreign)
    mine = [call(relay, context=foreign) for _ in range(3)]
    mine.append(call(relay, context=foreign, session=session))
    other = call(relay)
    assert all(map(echoes, [*mine, other]))
    before = time.monotonic()
    relay.update(renewal(cas=(pki.ca, pki.ca)))
    assert [client.end()[0] for client in mine] == [b""] * 4
    assert time.monotonic() - before < 1
    assert echoes(other)
    records = [relay.record(i) for i in range(1, 5)]
    assert {one["reason"] for one in records} == {"not_allowed_during_session"}
    assert sorted(one["resumed"] for one in records) == [False, False, False, True]
    assert "is no longer in client_ca" in records[0]["detail"]
    assert records[0]["side"] == "inbound"
    assert relay.value("relay_sessions_unjudged_total") == 0


def test_a_resumed_session_that_cannot_be_judged_is_closed(start, backend, pki, call, two_cas):
    """In TLS 1.2 a client below an intermediate of its own may resume."""
    relay = start([backend().address])
    relay.update(renewal(cas=(pki.ca, two_cas)))
    context = client_context(pki, pki.client_intermediate_sent, version=ssl.TLSVersion.TLSv1_2)
    session = ask(relay, context)
    resumed, full = call(relay, context=context, session=session), call(relay, context=context)
    assert echoes(resumed)
    assert echoes(full)
    relay.update(renewal(cas=(pki.ca, pki.ca)))
    assert resumed.end()[0] == b""
    assert echoes(full)
    assert relay.record(1)["reason"] == "not_allowed_during_session"
    assert "does not tell which CA issued" in relay.record(1)["detail"]
    assert relay.value("relay_sessions_unjudged_total") == 1


def test_a_ca_that_is_added_ends_no_session(start, backend, pki, call, two_cas):
    relay = start([backend().address])
    client = call(relay)
    assert echoes(client)
    relay.update(renewal(cas=(pki.ca, two_cas)))
    relay.let_it_turn()
    assert echoes(client)


RULES = {
    "no longer in allow": {"allow": Allow(cn=("bob",))},
    "now in deny": {"deny": Deny(cn=("alice",))},
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_sessions_that_the_rules_no_longer_admit_end(start, backend, pki, call, tmp_path, rules):
    relay = start([backend().address])
    leaf = pki.authority.issue(LeafSpec("bob", purposes=("client",)))
    bob = call(relay, context=client_context(pki, write(tmp_path, "bob", leaf)))
    alice = call(relay)
    assert echoes(alice)
    assert echoes(bob)
    relay.update(TrustUpdate({ROUTE: trust_of(pki.authority, **rules)}, {}))
    assert alice.end()[0] == b""
    assert echoes(bob)
    assert reasons(relay, 1) == ["not_allowed_during_session"]
    assert "alice" in relay.record()["detail"]


def test_a_route_that_is_gone_keeps_its_sessions(start, backend, pki, call):
    relay = start([backend().address])
    client = call(relay)
    assert echoes(client)
    other = {("https", "other.example.com"): trust_of(), ("http", "default"): trust_of()}
    relay.update(TrustUpdate(other, {}))
    relay.let_it_turn()
    assert echoes(client)


def test_the_same_trust_in_other_objects_ends_no_session(start, backend, pki, call):
    relay = start([backend().address], route='allow = { cn = ["alice"] }')
    client = call(relay)
    assert echoes(client)
    for _ in range(3):
        same = trust_of(pki.authority, allow=Allow(cn=("alice",)))
        relay.update(TrustUpdate({ROUTE: same}, {}))
        assert echoes(client)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_handshake_across_a_renewal_is_judged_by_the_new_trust(
    start, backend, pki, two_cas, version
):
    """OpenSSL verifies it with the CAs of its beginning, which include the client's."""
    relay = start([backend().address])
    relay.update(renewal(cas=(pki.ca, two_cas)))
    context = client_context(pki, pki.client_foreign, version=version)
    client = dial(relay.port, context, hello_only=True)
    good = dial(relay.port, client_context(pki, pki.client, version=version), hello_only=True)
    relay.update(renewal(cas=(pki.ca, pki.ca)))
    try:
        client.handshake()
        end = client.end()[1]
    except ssl.SSLError as error:
        end = error.reason
    assert end == "SSLV3_ALERT_BAD_CERTIFICATE"
    client.sock.close()
    assert reasons(relay, 1) == ["unknown_ca"]
    good.handshake()
    assert echoes(good)
    good.close()


def test_many_sessions_end_while_others_are_served(start, backend, pki, call, two_cas):
    limits = "[limits]\nconnections = 2000\nhandshakes = 2000"
    relay = start([backend().address], top=limits)
    relay.update(renewal(cas=(pki.ca, two_cas)))
    foreign = client_context(pki, pki.client_foreign)
    mine = [call(relay, context=foreign) for _ in range(450)]
    other = call(relay)
    relay.update(renewal(cas=(pki.ca, pki.ca)))
    assert echoes(other)
    assert all(client.end()[0] == b"" for client in mine)
    assert relay.value("relay_sessions_closed_total", "not_allowed_during_session") == 450


@pytest.fixture
def foreign_backend(pki, backend, tmp_path):
    """A backend whose certificate is from the other CA."""
    spec = LeafSpec("foreign", dns=(BACKEND_NAME,), purposes=("server",))
    return backend(files=write(tmp_path, "foreign", pki.foreign_authority.issue(spec)))


def test_sessions_with_a_backend_of_a_removed_ca_end(
    start, backend, pki, call, two_cas, foreign_backend
):
    relay = start([backend().address, foreign_backend.address], pool="retry_s = 60")
    relay.update(renewal(cas=(pki.ca, two_cas)))
    clients = [call(relay) for _ in range(6)]
    assert all(map(echoes, clients))
    relay.update(renewal(cas=(pki.ca, pki.ca)))
    ended = {relay.record(i)["backend"] for i in range(3)}
    assert ended == {"b2"}
    record = relay.record()
    assert (record["reason"], record["side"]) == ("backend_not_trusted_during_session", "outbound")
    assert "is no longer in backend_ca" in record["detail"]
    relay.let_it_turn()
    assert relay.value("relay_sessions_closed_total", "backend_not_trusted_during_session") == 3


def test_a_handshake_with_a_backend_across_a_renewal_is_judged(
    start, pki, call, two_cas, door, tmp_path
):
    """OpenSSL verifies the backend by the CAs of the handshake's beginning."""
    spec = LeafSpec("foreign", dns=(BACKEND_NAME,), purposes=("server",))
    foreign = door(write(tmp_path, "foreign", pki.foreign_authority.issue(spec)))
    relay = start([foreign.address])
    relay.update(renewal(cas=(pki.ca, two_cas)))
    client = call(relay)
    waiting = foreign.accept_tcp()
    relay.update(renewal(cas=(pki.ca, pki.ca)))
    server = Peer(waiting, foreign.context, server_side=True, hello_only=True)
    with contextlib.suppress(ssl.SSLError, EOFError, OSError):
        server.handshake()
        server.receive_some()
    assert client.end()[0] == b""
    assert relay.record()["reason"] == "backend_unknown_ca"


def test_a_backends_certificate_that_expires_ends_its_sessions(
    start, backend, pki, call, tmp_path, monkeypatch
):
    clock = Clock()
    monkeypatch.setattr(expiry, "time", clock)
    monkeypatch.setattr(expiry, "SETTLE_S", 0.0)
    until = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    spec = LeafSpec("short", dns=(BACKEND_NAME,), purposes=("server",), not_after=until)
    short = backend(files=write(tmp_path, "short", pki.authority.issue(spec)))
    relay = start([backend().address, short.address])
    clients = [call(relay) for _ in range(4)]
    assert all(map(echoes, clients))
    clock.shift(3_600 + expiry.JITTER_S + 1)
    records = [relay.record(i) for i in range(2)]
    assert {(one["reason"], one["side"], one["backend"]) for one in records} == {
        ("backend_expired_during_session", "outbound", "b2")
    }
    relay.let_it_turn()
    assert relay.value("relay_sessions_closed_total", "backend_expired_during_session") == 2


def test_sessions_may_outlive_a_backends_certificate(
    start, backend, pki, call, tmp_path, monkeypatch
):
    clock = Clock()
    monkeypatch.setattr(expiry, "time", clock)
    monkeypatch.setattr(expiry, "SETTLE_S", 0.0)
    until = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    spec = LeafSpec("short", dns=(BACKEND_NAME,), purposes=("server",), not_after=until)
    short = backend(files=write(tmp_path, "short", pki.authority.issue(spec)))
    relay = start([short.address], pool='at_expiry = "finish"')
    client = call(relay)
    clock.shift(7_200)
    relay.let_it_turn(2)
    assert echoes(client)


def test_a_bug_in_judging_closes_that_session_and_judges_the_others(caplog):
    class Broken:
        def allow(self, who):
            if who.fingerprint.endswith("7"):
                raise RuntimeError("a bug")
            return True

    cas = Authority.root("Root"), Authority.root("Other")
    made, route, target = make_sessions(cas, 3_000)
    broken = ClientTrust(Broken(), route.trust.cas)
    _, closed = judge((made, route, target), lambda place, _: setattr(place, "trust", broken))
    wrong = {session for session in made if session.identity.fingerprint.endswith("7")}
    assert {session for session, _ in closed} == wrong
    assert {error.reason for _, error in closed} == {"internal_error"}
    assert all(session.trust is broken for session in made - wrong)
    assert "bug: a session cannot be judged" in caplog.text


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_worker_admits_nobody_whom_the_new_settings_refuse(
    start, backend, pki, two_cas, version
):
    """OpenSSL verifies clients from its queue by the CAs that the worker began with."""
    relay = start([backend().address])
    relay.update(renewal(cas=(pki.ca, two_cas)))
    foreign = client_context(pki, pki.client_foreign, version=version)
    session = ask(relay, foreign)
    relay.update(TrustUpdate({ROUTE: trust_of(pki.authority)}, {}))
    for offered in (session, None):
        with pytest.raises(OSError, match="alert"):
            ask(relay, foreign, offered)
    assert reasons(relay, 3) == ["finished", "unknown_ca", "unknown_ca"]
    ask(relay, client_context(pki, pki.client, version=version))


def test_an_old_worker_uses_no_backend_that_the_new_settings_refuse(start, backend, pki, call):
    relay = start([backend().address])
    ask(relay, client_context(pki, pki.client))
    cas = trust_of(pki.foreign_authority).cas
    relay.update(TrustUpdate({}, {"main": BackendTrust(cas)}))
    for _ in range(2):  # the first one is offered the session of the earlier connection
        assert call(relay).end()[0] == b""
    assert reasons(relay, 3)[1:] == ["backend_unknown_ca"] * 2

"""Sessions that are judged again by new revocation lists, in one worker."""

import ssl
import time
from datetime import timedelta

import pytest

from relay.demo.ca import LeafSpec
from tests.support.crls import COMPROMISED, make_crl
from tests.support.pki import BACKEND_NAME, write
from tests.support.worker import client_context, connect, receive

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def publish(pki, tmp_path):
    """Write the list of the test CA, with these certificates, anew."""
    numbers = iter(range(1, 100))

    def publish(*revoked, authority=pki.authority, name="root", **how):
        file = tmp_path / f"{name}.crl"
        file.write_bytes(make_crl(authority, revoked, number=next(numbers), **how))
        return f'["{file}"]'

    return publish


@pytest.fixture
def bob(pki, tmp_path):
    """A context of another client."""
    leaf = pki.authority.issue(LeafSpec("bob", purposes=("client",)))
    return client_context(pki, write(tmp_path, "bob", leaf))


def echoes(client):
    client.send(b"hello")
    return client.receive(5) == b"hello"


def ask(relay, context, session=None):
    with connect(relay.port, context, session=session) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        found = client.session
        client.unwrap()
        return found


@pytest.mark.parametrize("version", VERSIONS)
def test_a_revoked_client_is_out_within_a_second(start, backend, pki, call, publish, bob, version):
    relay = start([backend().address], route=f"client_crl = {publish()}")
    context = client_context(pki, pki.client, version=version)
    session = ask(relay, context)
    mine = [call(relay, context=context) for _ in range(3)]
    mine.append(call(relay, context=context, session=session))
    other = call(relay, context=bob)
    assert all(map(echoes, [*mine, other]))
    publish((pki.client.issued.certificate, COMPROMISED))
    before = time.monotonic()
    relay.renew_lists()
    assert [client.end()[0] for client in mine] == [b""] * 4
    assert time.monotonic() - before < 1
    assert echoes(other)
    records = [relay.record(i) for i in range(1, 5)]
    assert {(one["reason"], one["side"]) for one in records} == {
        ("revoked_during_session", "inbound")
    }
    assert sorted(one["resumed"] for one in records) == [False, False, False, True]
    assert records[0]["detail"].startswith("revoked 2026-11-26 (key compromise), CRL 2 of")


def test_a_revoked_intermediate_ends_sessions_below_it(start, backend, pki, call, publish):
    route = f'[listener.route.crl]\nfiles = {publish()}\nmissing = "accept"'
    relay = start([backend().address], route=route)
    below = call(relay, context=client_context(pki, pki.client_intermediate_sent))
    beside = call(relay)
    assert echoes(below)
    assert echoes(beside)
    publish(pki.intermediate.certificate)
    relay.renew_lists()
    assert below.end()[0] == b""
    assert echoes(beside)
    assert relay.record()["reason"] == "revoked_during_session"
    assert 'its issuer "CN=Test Intermediate CA' in relay.record()["detail"]


def test_a_list_that_expires_ends_no_session(start, backend, pki, call, publish):
    relay = start([backend().address], route=f"client_crl = {publish()}")
    client = call(relay)
    assert echoes(client)
    publish(age=timedelta(days=9))  # it lasts for 7 days
    relay.renew_lists()
    with pytest.raises(OSError, match="alert"):
        ask(relay, client_context(pki, pki.client))
    assert relay.record()["reason"] == "crl_expired"
    relay.let_it_turn()
    assert echoes(client)


def test_who_is_on_an_expired_list_is_out_all_the_same(start, backend, pki, call, publish):
    relay = start([backend().address], route=f"client_crl = {publish()}")
    client = call(relay)
    assert echoes(client)
    publish(pki.client.issued.certificate, age=timedelta(days=9))
    relay.renew_lists()
    assert client.end()[0] == b""
    assert relay.record()["reason"] == "revoked_during_session"


def test_every_new_list_is_judged_by(start, backend, pki, call, publish, bob):
    relay = start([backend().address], route=f"client_crl = {publish()}")
    alice, other = call(relay), call(relay, context=bob)
    for _ in range(3):
        publish(12345)
        relay.renew_lists()
        assert echoes(alice)
    publish(12345, pki.client.issued.certificate)
    relay.renew_lists()
    assert alice.end()[0] == b""
    assert echoes(other)


@pytest.fixture
def backend_for(pki, backend, tmp_path):
    """Start a backend with a certificate of this CA."""

    def backend_for(authority, name, **spec):
        leaf = authority.issue(LeafSpec(name, dns=(BACKEND_NAME,), purposes=("server",), **spec))
        return backend(files=write(tmp_path, name, leaf)), leaf.certificate

    return backend_for


def test_a_revoked_backend_loses_its_sessions(start, pki, call, publish, backend_for):
    (one, certificate), (two, _) = (backend_for(pki.authority, name) for name in ("one", "two"))
    pool = f"backend_crl = {publish()}"
    relay = start([one.address, two.address], pool=pool)
    clients = [call(relay) for _ in range(4)]
    assert all(map(echoes, clients))
    publish((certificate, COMPROMISED))
    relay.renew_lists()
    records = [relay.record(i) for i in range(2)]
    assert {(each["reason"], each["side"], each["backend"]) for each in records} == {
        ("backend_revoked_during_session", "outbound", "b1")
    }
    assert records[0]["detail"].startswith("revoked 2026-11-26 (key compromise)")
    ended = [client for client in clients if not _lives(client)]
    assert len(ended) == 2
    relay.let_it_turn()
    assert relay.value("relay_sessions_closed_total", "backend_revoked_during_session") == 2
    ask(relay, client_context(pki, pki.client))  # it goes to the other backend


def _lives(client):
    try:
        return echoes(client)
    except (EOFError, OSError):
        return False


def test_sessions_of_a_trusted_ca_that_is_revoked_itself_end(
    start, backend, pki, call, publish, tmp_path
):
    """With partial_chain their chains end at this CA, and so does what is looked up."""
    cas = tmp_path / "cas.pem"
    pki.intermediate.write(cas)
    cas.write_bytes(cas.read_bytes() + pki.ca.read_bytes())
    publish(authority=pki.intermediate, name="below")
    files = f'["{tmp_path}/root.crl", "{tmp_path}/below.crl"]'
    publish()
    route = f"client_crl = {files}\npartial_chain = true"
    relay = start([backend().address], route=route, client_ca=cas)
    below = call(relay, context=client_context(pki, pki.client_intermediate_sent))
    beside = call(relay)
    assert echoes(below)
    assert echoes(beside)
    publish(pki.intermediate.certificate)
    relay.renew_lists()
    assert below.end()[0] == b""
    assert echoes(beside)
    assert relay.record()["reason"] == "revoked_during_session"
    assert "Intermediate" in relay.record()["detail"]

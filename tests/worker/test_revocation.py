"""Clients and backends on revocation lists: refused in every kind of handshake."""

from dataclasses import dataclass
from pathlib import Path
from ssl import SSLError, TLSVersion

import pytest

from relay.demo.ca import Authority, LeafSpec
from tests.support.crls import COMPROMISED, make_crl
from tests.support.peer import Peer
from tests.support.pki import BACKEND_NAME, Pki, write
from tests.support.worker import client_context, connect, receive, wait_until

both_versions = pytest.mark.parametrize("version", [TLSVersion.TLSv1_2, TLSVersion.TLSv1_3])


@dataclass
class Lists:
    """The files of lists of a test: of the root and of the intermediate."""

    pki: Pki
    root: Path
    below: Path
    number: int = 0

    def publish(self, *revoked, below=(), **how):
        """Write both lists anew."""
        self.number += 1
        self.root.write_bytes(make_crl(self.pki.authority, revoked, number=self.number, **how))
        self.below.write_bytes(make_crl(self.pki.intermediate, below, number=self.number, **how))

    @property
    def route(self):
        return f'client_crl = ["{self.root}", "{self.below}"]'

    @property
    def pool(self):
        return f'backend_crl = ["{self.root}"]'


@pytest.fixture
def lists(pki, tmp_path):
    made = Lists(pki, tmp_path / "root.crl", tmp_path / "below.crl")
    made.publish()
    return made


@pytest.fixture
def both_cas(pki, tmp_path):
    """A client_ca with the root and the intermediate, which then gets tickets."""
    file = tmp_path / "both.pem"
    pki.intermediate.write(file)
    file.write_bytes(file.read_bytes() + pki.ca.read_bytes())
    return file


def ask(relay, context, session=None):
    """A short session: the answer, whether it was resumed, and the next session."""
    with connect(relay.port, context, session=session) as client:
        client.sendall(b"hello")
        said = receive(client, 5)
        found = said, client.session_reused, client.session
        client.unwrap()
        return found


def certificate_of(files):
    return files.issued.certificate


@both_versions
@pytest.mark.parametrize("resumed", [False, True])
def test_a_client_that_is_revoked_is_refused(start, backend, pki, lists, version, resumed):
    relay = start([backend().address], route=lists.route)
    context = client_context(pki, pki.client, version=version)
    session = ask(relay, context)[2] if resumed else None
    if resumed:
        assert ask(relay, context, session)[1], "tickets count while nobody is revoked"
    lists.publish((certificate_of(pki.client), COMPROMISED))
    relay.renew_lists()
    with pytest.raises(SSLError, match="certificate revoked"):
        ask(relay, context, session)
    record = relay.record(2 if resumed else 0)
    assert (record["reason"], record["side"]) == ("revoked", "inbound")
    assert (record["subject"], record["resumed"]) == ("CN=alice", resumed)
    sentence = f'revoked 2026-11-26 (key compromise), CRL 2 of "CN=Test CA" from {lists.root}, next'
    assert record["detail"].startswith(sentence)
    assert relay.value("relay_handshakes_total", "inbound", "revoked") == 1
    # Others are not concerned.
    assert ask(relay, client_context(pki, pki.client_spiffe, version=version))[0] == b"hello"


@both_versions
def test_a_client_below_a_revoked_intermediate_is_refused(
    start, backend, pki, lists, both_cas, version
):
    relay = start([backend().address], route=lists.route, client_ca=both_cas)
    context = client_context(pki, pki.client_intermediate_sent, version=version)
    _, _, session = ask(relay, context)
    assert ask(relay, context, session)[1], "its issuer is in client_ca"
    lists.publish(pki.intermediate.certificate)
    relay.renew_lists()
    for offered in (session, None):
        with pytest.raises(SSLError, match="certificate revoked"):
            ask(relay, context, offered)
    for number in (2, 3):
        record = relay.record(number)
        assert (record["reason"], record["resumed"]) == ("revoked", False)
        assert record["detail"].startswith(
            'its issuer "CN=Test Intermediate CA" (certificate 1 of its chain) is revoked'
        )


@both_versions
@pytest.mark.parametrize("name", ["client_intermediate_sent", "client_intermediate_missing"])
def test_a_chain_that_ends_before_the_root_is_looked_up_too(
    start, backend, pki, lists, both_cas, version, name
):
    """With partial_chain the root that revoked the intermediate is not in the chain."""
    rules = f"{lists.route}\npartial_chain = true"
    relay = start([backend().address], route=rules, client_ca=both_cas)
    context = client_context(pki, getattr(pki, name), version=version)
    _, _, session = ask(relay, context)
    assert ask(relay, context, session)[1], "its issuer is in client_ca"
    lists.publish(pki.intermediate.certificate)
    relay.renew_lists()
    for offered in (session, None):
        with pytest.raises(SSLError, match="certificate revoked"):
            ask(relay, context, offered)
    for number in (2, 3):
        record = relay.record(number)
        assert (record["reason"], record["resumed"]) == ("revoked", False)
        assert 'the CA "CN=Test Intermediate CA", where its chain ends, is' in record["detail"]


@both_versions
def test_a_leaf_of_an_intermediate_is_looked_up_under_its_key(
    start, backend, pki, lists, both_cas, version
):
    relay = start([backend().address], route=lists.route, client_ca=both_cas)
    context = client_context(pki, pki.client_intermediate_sent, version=version)
    _, _, session = ask(relay, context)
    # The root has revoked this serial number, but not this certificate.
    serial = certificate_of(pki.client_intermediate_sent).serial_number
    lists.publish(serial)
    relay.renew_lists()
    assert ask(relay, context, session)[:2] == (b"hello", True)
    lists.publish(below=[serial])
    relay.renew_lists()
    for offered, resumed in ((session, True), (None, False)):
        with pytest.raises(SSLError, match="certificate revoked"):
            ask(relay, context, offered)
        assert relay.record(2 + (not resumed))["resumed"] == resumed


@both_versions
def test_a_client_is_admitted_again_after_a_hold(start, backend, pki, lists, version):
    lists.publish(certificate_of(pki.client))
    relay = start([backend().address], route=lists.route)
    context = client_context(pki, pki.client, version=version)
    with pytest.raises(SSLError, match="certificate revoked"):
        ask(relay, context)
    lists.publish()
    relay.renew_lists()
    assert ask(relay, context)[0] == b"hello"


@both_versions
@pytest.mark.parametrize("resumed", [False, True])
def test_a_list_that_expires_refuses_resumptions_too(
    start, backend, pki, lists, clock, version, resumed
):
    relay = start([backend().address], route=lists.route)
    context = client_context(pki, pki.client, version=version)
    session = ask(relay, context)[2] if resumed else None
    clock.shift(8 * 86400)
    with pytest.raises(SSLError, match="bad certificate"):
        ask(relay, context, session)
    record = relay.record(1 if resumed else 0)
    assert (record["reason"], record["resumed"]) == ("crl_expired", resumed)
    assert record["detail"].startswith(f'CRL 1 of "CN=Test CA" from {lists.root} has expired 20')
    assert "get the CA's current list" in record["remedy"]


@both_versions
def test_a_ca_without_a_list_has_its_clients_refused(start, backend, pki, lists, tmp_path, version):
    cas = tmp_path / "two.pem"
    cas.write_bytes(pki.ca.read_bytes() + pki.foreign_ca.read_bytes())
    relay = start(
        [backend().address],
        route=f'[listener.route.crl]\nfiles = ["{lists.root}"]\nmissing = "accept"',
        client_ca=cas,
    )
    foreign = client_context(pki, pki.client_foreign, version=version)
    assert ask(relay, foreign)[0] == b"hello"
    assert ask(relay, client_context(pki, pki.client, version=version))[0] == b"hello"
    lists.publish(certificate_of(pki.client))
    relay.renew_lists()
    assert ask(relay, foreign)[0] == b"hello"
    with pytest.raises(SSLError, match="certificate revoked"):
        ask(relay, client_context(pki, pki.client, version=version))


@both_versions
def test_a_client_with_its_own_intermediate_needs_that_cas_list(
    start, backend, pki, lists, version
):
    relay = start([backend().address], route=f'client_crl = ["{lists.root}"]')
    context = client_context(pki, pki.client_intermediate_sent, version=version)
    with pytest.raises(SSLError, match="bad certificate"):
        ask(relay, context)
    record = relay.record()
    assert record["reason"] == "crl_missing"
    assert record["detail"] == (
        'there is no revocation list of "CN=Test Intermediate CA", which issued it'
    )


@both_versions
def test_accepting_missing_lists_resumes_nobody_whose_issuer_was_sent(
    start, backend, pki, lists, version
):
    relay = start(
        [backend().address],
        route=f'[listener.route.crl]\nfiles = ["{lists.root}"]\nmissing = "accept"',
    )
    context = client_context(pki, pki.client_intermediate_sent, version=version)
    _, _, session = ask(relay, context)
    assert not ask(relay, context, session)[1]
    lists.publish(pki.intermediate.certificate)
    relay.renew_lists()
    with pytest.raises(SSLError, match="certificate revoked"):
        ask(relay, context, session)
    assert relay.record(2)["reason"] == "revoked"


@both_versions
def test_an_issuing_ca_alone_needs_its_own_list_only(start, backend, pki, lists, tmp_path, version):
    relay = start(
        [backend().address],
        route=f'client_crl = ["{lists.below}"]\npartial_chain = true',
        client_ca=pki.intermediate.write(tmp_path / "below.pem"),
    )
    files = pki.client_intermediate_sent
    context = client_context(pki, files, version=version)
    _, _, session = ask(relay, context)
    assert ask(relay, context, session)[1], "with partial_chain its chain ends at that CA"
    lists.publish(below=[certificate_of(files)])
    relay.renew_lists()
    for offered in (session, None):
        with pytest.raises(SSLError, match="certificate revoked"):
            ask(relay, context, offered)


def test_many_renewed_lists_leak_nothing(start, backend, pki, lists):
    relay = start([backend().address], route=lists.route, pool=lists.pool)
    context = client_context(pki, pki.client)

    def sets_mapped():
        return Path(f"/proc/{relay.pid}/maps").read_text().count("memfd:")

    def renew(times):
        session = None
        for _ in range(times):
            lists.publish(*range(1, 200))
            relay.renew_lists()
            _, _, session = ask(relay, context, session)

    renew(40)
    # Not "Private": it also grows when the worker writes to pages of the test's memory.
    before = relay.memory("Rss"), relay.open_files(), sets_mapped()
    renew(200)
    wait_until(lambda: relay.open_files() <= before[1], "the sessions' descriptors to be closed")
    assert sets_mapped() <= before[2]
    assert relay.memory("Rss") - before[0] < 1_000_000


# Backends.


@both_versions
def test_a_backend_that_is_revoked_is_not_used(start, backend, pki, lists, version):
    spec = LeafSpec("backend", dns=(BACKEND_NAME,), purposes=("server",))
    files = [pki.write(pki.authority.issue(spec)) for _ in range(2)]
    addresses = [backend(files=each, version=version).address for each in files]
    lists.publish((certificate_of(files[0]), COMPROMISED))
    relay = start(addresses, pool=f"{lists.pool}\nretry_s = 60")
    context = client_context(pki, pki.client)
    for number in range(3):
        assert ask(relay, context)[0] == b"hello"
        assert relay.record(number)["backend"] == "b2"
    assert "pool main: backend b1 failed and is not used for 60 s: backend_revoked:" in (
        relay.messages()
    )
    assert relay.value("relay_handshakes_total", "outbound", "backend_revoked") == 1
    assert f'revoked 2026-11-26 (key compromise), CRL 2 of "CN=Test CA" from {lists.root}' in (
        relay.messages()
    )


@both_versions
def test_a_kept_session_does_not_resume_to_a_revoked_backend(start, backend, pki, lists, version):
    back = backend(version=version)
    relay = start([back.address], pool=f"{lists.pool}\nretry_s = 1")
    context = client_context(pki, pki.client)
    ask(relay, context)
    ask(relay, context)
    assert relay.value("relay_handshakes_total", "outbound", "resumed") == 1
    lists.publish(certificate_of(pki.backend))
    relay.renew_lists()
    assert not serves(relay, context)
    record = relay.record(2)
    assert (record["reason"], record["side"]) == ("backend_revoked", "outbound")
    assert record["detail"].startswith(f"b1 at {back.address} (name {BACKEND_NAME}): revoked 2026-")
    assert "the backend's certificate: subject CN=backend" in record["detail"]
    lists.publish()
    relay.renew_lists()
    wait_until(lambda: serves(relay, context), "the backend to be used again")


@both_versions
@pytest.mark.parametrize("revoked", [False, True])
def test_lists_that_change_while_a_backend_resumes_count(
    start, door, call, pki, lists, version, revoked
):
    back = door(version=version)
    relay = start([back.address], pool=lists.pool)
    client = call(relay)
    server = back.accept()
    server.send(b"hello")  # with it, the relay gets a session to resume
    assert client.receive(5) == b"hello"
    client.close()
    server.close()
    client = call(relay)
    sock = back.accept_tcp()  # the relay has offered the session, and waits
    lists.publish(certificate_of(pki.backend) if revoked else 1)
    relay.renew_lists()
    server = Peer(sock, back.context, server_side=True)
    assert server.tls.session_reused
    if revoked:
        record = relay.record(1)
        assert (record["reason"], record["side"]) == ("backend_revoked", "outbound")
    else:
        server.send(b"again")
        assert client.receive(5) == b"again"


def serves(relay, context):
    try:
        return ask(relay, context)[0] == b"hello"
    except OSError:
        return False


def test_a_backend_of_a_ca_without_a_list_is_not_used(start, backend, pki, lists, tmp_path):
    other = Authority.root("Other CA")
    cas = tmp_path / "two.pem"
    other.write(cas)
    cas.write_bytes(cas.read_bytes() + pki.ca.read_bytes())
    spec = LeafSpec("backend", dns=(BACKEND_NAME,), purposes=("server",))
    files = write(tmp_path, "other", other.issue(spec))
    relay = start(
        [backend(files=files).address, backend().address],
        pool=f'backend_crl = ["{lists.root}"]\nretry_s = 60',
        backend_ca=cas,
    )
    assert ask(relay, client_context(pki, pki.client))[0] == b"hello"
    assert relay.record()["backend"] == "b2"
    assert "backend_crl_missing: b1 at" in relay.messages()
    assert 'there is no revocation list of "CN=Other CA", which issued it' in relay.messages()

"""Certificates and CAs that a worker gets while it runs."""

import pytest

from relay.demo.ca import LeafSpec
from relay.tls.renewal import Renewal
from tests.support.backend import echo
from tests.support.pki import BACKEND_NAME, write
from tests.support.renewals import renewal
from tests.support.worker import client_context, connect, receive, wait_until

NAME = "app.example.com"


def ask(relay, context, session=None):
    """A short session.

    Returns the serial number of the certificate shown, whether the client resumed, and
    its next session.
    """
    with connect(relay.port, context, session=session) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        found = int(client.getpeercert()["serialNumber"], 16), client.session_reused, client.session
        client.unwrap()
        return found


@pytest.fixture
def issue(pki, tmp_path):
    """Make another certificate of the relay, for clients and backends."""

    def issue(name="another", authority=pki.authority):
        spec = LeafSpec("relay", dns=(NAME, BACKEND_NAME), purposes=("server", "client"))
        return write(tmp_path, name, authority.issue(spec))

    return issue


def test_a_new_certificate_reaches_clients_but_no_session(start, backend, pki, issue):
    relay = start([backend().address])
    context = client_context(pki, pki.client)
    with connect(relay.port, context) as long:
        first, _, session = ask(relay, context)
        new = issue()
        relay.update(renewal(pair=(pki.gateway, new)))
        serial, resumed, _ = ask(relay, context)
        assert (serial, resumed) == (new.issued.certificate.serial_number, False)
        assert serial != first
        assert ask(relay, context, session)[1], "a ticket from before the renewal"
        long.sendall(b"hello")
        assert receive(long, 5) == b"hello"


def test_a_client_of_a_removed_ca_is_refused(start, backend, pki):
    relay = start([backend().address])
    context = client_context(pki, pki.client)
    _, _, session = ask(relay, context)
    relay.update(renewal(cas=(pki.ca, pki.foreign_ca)))
    for each in (session, None):
        with pytest.raises(OSError, match="unknown ca"):
            ask(relay, context, each)
    assert [relay.record(i)["reason"] for i in range(3)] == ["finished", *["unknown_ca"] * 2]


def test_a_backend_sees_the_new_machine_certificate(start, backend, pki, issue):
    seen = []

    def serve(connection):
        seen.append(int(connection.getpeercert()["serialNumber"], 16))
        echo(connection)

    relay = start([backend(serve).address])
    context = client_context(pki, pki.client)
    new = issue()
    for _ in range(2):
        ask(relay, context)
    relay.update(renewal(pair=(pki.machine, new)))
    ask(relay, context)
    # A resumed session would show the certificate of its first handshake.
    assert seen[2:] == [new.issued.certificate.serial_number]
    assert seen[0] == seen[1] != seen[2]


def test_many_renewals_in_a_row_leak_nothing(start, backend, pki, issue):
    relay = start([backend().address])
    context = client_context(pki, pki.client)
    renewals = [renewal(pair=(pki.gateway, issue(f"another-{i}"))) for i in range(2)]
    for each in renewals * 20:
        relay.update(each)
    ask(relay, context)
    relay.record()  # the access log is open
    before = relay.memory("Private"), relay.open_files()
    for each in renewals * 100:
        relay.update(each)
    ask(relay, context)
    wait_until(lambda: relay.open_files() <= before[1], "the session's descriptors to be closed")
    assert relay.memory("Private") - before[0] < 1_000_000


def test_an_update_that_cannot_be_applied_makes_the_worker_drain(start, backend, pki):
    relay = start([backend().address])
    context = client_context(pki, pki.client)
    with connect(relay.port, context) as long:
        ask(relay, context)
        without_contents = Renewal({}, frozenset([(pki.gateway.certificate, pki.gateway.key)]))
        relay.send_update(without_contents)
        relay.wait_until_it_drains()
        long.sendall(b"hello")
        assert receive(long, 5) == b"hello"
    assert "certificates cannot be renewed in this worker" in relay.messages()

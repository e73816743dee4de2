"""Which clients get a ticket to resume with."""

from datetime import UTC, datetime, timedelta
from ssl import SSLError, TLSVersion

import pytest

from relay.demo.ca import LeafSpec
from relay.tls.material import TICKET_LIFETIME_S
from tests.support.pki import write
from tests.support.worker import client_context, connect, receive


def valid_for(pki, directory, seconds):
    """A client certificate that expires so soon."""
    until = (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)
    return write(
        directory,
        f"client-{seconds}",
        pki.authority.issue(LeafSpec("alice", purposes=("client",), not_after=until)),
    )


def ask(relay, context, session=None):
    """Connect with a session. Returns whether it was resumed, and the next session."""
    with connect(relay.port, context, session=session) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        found = client.session_reused, client.session
        client.unwrap()
        return found


def ask_twice(relay, context):
    """Whether a second connection that offers the first's session is resumed."""
    _, session = ask(relay, context)
    return ask(relay, context, session)[0]


def test_a_client_with_its_own_intermediate_gets_no_resumption(start, backend, pki):
    # In TLS 1.2 the ticket is promised before the certificate is seen. A resumption
    # gives no new one there, so TICKET_LIFETIME_S is its limit.
    relay = start([backend().address])
    assert not ask_twice(
        relay, client_context(pki, pki.client_intermediate_sent, version=TLSVersion.TLSv1_3)
    )
    assert ask_twice(relay, client_context(pki, pki.client, version=TLSVersion.TLSv1_3))
    assert [relay.record(i)["reason"] for i in range(4)] == ["finished"] * 4


@pytest.mark.parametrize("version", [TLSVersion.TLSv1_2, TLSVersion.TLSv1_3])
@pytest.mark.parametrize("tickets", [True, False])
def test_a_route_without_tickets_has_no_resumptions(start, backend, pki, version, tickets):
    relay = start([backend().address], route=f"session_tickets = {str(tickets).lower()}")
    assert ask_twice(relay, client_context(pki, pki.client, version=version)) == tickets
    assert [relay.record(i)["resumed"] for i in range(2)] == [False, tickets]


def test_a_client_gets_no_ticket_that_outlives_its_certificate(start, backend, pki, tmp_path):
    relay = start([backend().address])
    files = valid_for(pki, tmp_path, TICKET_LIFETIME_S)
    assert not ask_twice(relay, client_context(pki, files, version=TLSVersion.TLSv1_3))
    # In TLS 1.2 the ticket is promised before the certificate is seen, and a resumption
    # gives no new one.
    assert ask_twice(relay, client_context(pki, files, version=TLSVersion.TLSv1_2))


def test_a_resumption_gives_no_ticket_past_the_certificate(start, backend, pki, tmp_path, clock):
    relay = start([backend().address])
    files = valid_for(pki, tmp_path, TICKET_LIFETIME_S + 600)
    context = client_context(pki, files, version=TLSVersion.TLSv1_3)
    _, first = ask(relay, context)
    resumed, second = ask(relay, context, first)
    assert (resumed, second.id != first.id) == (True, True), "a new ticket"
    clock.shift(601)  # the certificate is valid for less than a ticket
    resumed, third = ask(relay, context, second)
    assert (resumed, third.id) == (True, second.id), "no new ticket"


@pytest.mark.parametrize("version", [TLSVersion.TLSv1_2, TLSVersion.TLSv1_3])
def test_a_client_that_offers_a_session_of_an_old_certificate(
    start, backend, pki, tmp_path, clock, version
):
    relay = start([backend().address])
    files = valid_for(pki, tmp_path, TICKET_LIFETIME_S - 100)
    context = client_context(pki, files, version=version)
    _, session = ask(relay, context)
    clock.shift(TICKET_LIFETIME_S)  # the certificate has expired
    context.load_cert_chain(pki.client.certificate, pki.client.key)
    if version is TLSVersion.TLSv1_3:
        assert not ask(relay, context, session)[0], "it comes in with the new one"
        return
    with pytest.raises(SSLError, match=r"(?i)certificate.expired"):
        ask(relay, context, session)
    record = relay.record(1)
    assert (record["reason"], record["resumed"], record["side"]) == ("expired", True, "inbound")
    assert record["detail"].startswith(
        "certificate has expired; the client resumed an old session,"
        " so its previous certificate was checked"
    )
    assert record["subject"] == "CN=alice"

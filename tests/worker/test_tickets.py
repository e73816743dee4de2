"""Who gets a ticket to resume with."""

from ssl import TLSVersion

import pytest

from tests.support.worker import client_context, connect, receive


def ask_twice(relay, context):
    """Two connections, the second offers the first's session; whether it was resumed."""
    session = None
    for _ in range(2):
        with connect(relay.port, context, session=session) as client:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
            session, reused = client.session, client.session_reused
            client.unwrap()
    return reused


def test_a_client_whose_issuer_only_it_has_shown_is_verified_anew_every_time(start, backend, pki):
    # TLS 1.2 has promised its ticket before it sees the certificate; but there a resumption gives no new one, so TICKET_LIFETIME_S bounds it.
    relay = start([backend().address])
    assert not ask_twice(relay, client_context(pki, pki.client_intermediate_sent, version=TLSVersion.TLSv1_3))
    assert ask_twice(relay, client_context(pki, pki.client, version=TLSVersion.TLSv1_3))
    assert [relay.record(i)["reason"] for i in range(4)] == ["finished"] * 4


@pytest.mark.parametrize("version", [TLSVersion.TLSv1_2, TLSVersion.TLSv1_3])
@pytest.mark.parametrize("tickets", [True, False])
def test_who_wants_no_tickets_has_no_resumptions(start, backend, pki, version, tickets):
    relay = start([backend().address], route=f"session_tickets = {str(tickets).lower()}")
    assert ask_twice(relay, client_context(pki, pki.client, version=version)) == tickets
    assert [relay.record(i)["resumed"] for i in range(2)] == [False, tickets]

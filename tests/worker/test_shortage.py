"""A worker that is short of memory blames no peer, and continues when it has memory."""

import contextlib
import ssl

import pytest

from relay.shared.entities import RETRY_UNTIL_MS, Series
from tests.support.peer import dial
from tests.support.worker import client_context, wait_until

MB = 1024 * 1024


def served(relay, context):
    """A client that was answered, or None for one that was refused."""
    client = None
    with contextlib.suppress(OSError, EOFError, ssl.SSLError):
        client = dial(relay.port, context)
        client.send(b"x")
        assert client.receive(1) == b"x"
        return client
    if client is not None:
        client.sock.close()
    return None


@pytest.mark.parametrize("spare", [2 * MB, 5 * MB])
def test_a_lack_of_memory_is_no_resources_and_no_peers_fault(start, backend, pki, stack, spare):
    relay = start([backend().address], memory_spare=spare, pool="retry_s = 3600")
    context, clients = client_context(pki, pki.client), []
    refused = 0
    while refused < 40:
        client = served(relay, context)
        if client is None:
            refused += 1
        else:
            clients.append(client)
            stack.callback(client.sock.close)
    assert len(clients) >= 10
    for client in clients:
        client.close()
    wait_until(lambda: relay.value("relay_connections_active") == 0, "all sessions to end")
    for _ in range(10):
        client = served(relay, context)
        assert client is not None, "there is memory again"
        client.close()
    wait_until(lambda: relay.value("relay_connections_active") == 0, "all sessions to end")
    relay.let_it_turn(2)
    records = relay.records()
    reasons = {record["reason"] for record in records}
    assert reasons <= {"finished", "no_resources"}, [
        r for r in records if r["reason"] not in {"finished", "no_resources"}
    ][:3]
    assert sum(record["reason"] == "no_resources" for record in records) >= 40
    assert all(
        "memory" in record["remedy"] for record in records if record["reason"] == "no_resources"
    )
    assert relay.snapshot().states[Series(RETRY_UNTIL_MS, ("main", "b1"))] == 0

"""One client decides nothing about a canary, unless the other side serves it."""

from __future__ import annotations

import pytest

from relay.core.canary import Counts, Part, differences
from relay.core.canary_clients import MOST_CLIENTS, PER_CLIENT, Clients, client_of

FAILED = (Part.CLIENT, "unknown_ca")


def side(attempts, failed=None, served=()):
    """The counts of one side, and its clients: how often each of them failed."""
    clients = Clients()
    for client, times in (failed or {}).items():
        clients.add_failed(*FAILED, client_of(client), times)
    for client in served:
        clients.add_served(client_of(client))
    return Counts({Part.CLIENT: attempts}, {FAILED: sum((failed or {}).values())}), clients


def is_worse(canary, others):
    (own, own_clients), (beside, clients_beside) = canary, others
    return bool(
        differences(
            own_clients.evidence(own, clients_beside), clients_beside.evidence(beside, own_clients)
        )
    )


MANY = {f"10.0.0.{number}": 1 for number in range(50)}
NETWORK = {f"2001:db8::{number:x}": 5 for number in range(50)}


@pytest.mark.parametrize(
    ("canary", "others", "worse"),
    [
        # A stranger that has found the canary, among clients that all are served.
        (side(200, {"192.0.2.1": 100}, MANY), side(100, {}, MANY), False),
        # The same from all addresses of its IPv6 network.
        (side(400, NETWORK, MANY), side(100, {}, MANY), False),
        # One NAT address: the canary refuses it, the others serve it.
        (side(100, {"192.0.2.1": 100}), side(100, {}, ["192.0.2.1"]), True),
        # Many clients that come once: none of them comes to both sides.
        (side(50, MANY), side(50, {}, ["192.0.2.1"]), True),
        # A stranger that keeps the others busy does not hide a canary that is bad.
        (side(50, MANY), side(500, {"192.0.2.1": 400}, ["192.0.2.2"]), True),
        # A client that fails everywhere.
        (side(100, {"192.0.2.1": 90}, MANY), side(100, {"192.0.2.1": 10}, MANY), False),
    ],
    ids=["stranger", "network", "nat", "many", "hidden", "both"],
)
def test_what_one_client_contributes(canary, others, worse):
    assert is_worse(canary, others) is worse


def test_what_is_no_evidence_is_no_attempt():
    counts, clients = side(110, {"192.0.2.1": 100, "192.0.2.2": 1})
    assert clients.evidence(counts, Clients()) == Counts(
        {Part.CLIENT: 9 + PER_CLIENT + 1}, {FAILED: PER_CLIENT + 1}
    )


def test_failures_of_clients_that_nobody_named_are_no_evidence():
    counts = Counts({Part.CLIENT: 50}, {FAILED: 50})
    assert Clients().evidence(counts, Clients()) == Counts({Part.CLIENT: 0})


def test_it_keeps_so_many_clients_only():
    clients = Clients()
    for number in range(MOST_CLIENTS + 10):
        clients.add_failed(*FAILED, str(number), 1)
        clients.add_served(str(number))
    counts = Counts({Part.CLIENT: 1 << 20}, {FAILED: 1 << 20})
    assert clients.evidence(counts, clients).failed(Part.CLIENT) == MOST_CLIENTS


def test_an_address_names_its_client_in_every_spelling():
    assert client_of("192.0.2.1") == client_of("::ffff:192.0.2.1")
    assert client_of("2001:db8::1") == client_of("2001:db8:0:0:ffff::1")
    assert client_of("2001:db8::1") != client_of("2001:db8:0:1::1")
    assert len(client_of("unix:" + "x" * 100)) <= 32

"""A backend with a host name uses all addresses; a failing one costs no session."""

from __future__ import annotations

import socket

import pytest

from relay.shared.addresses import Addresses, Located, cell_of, write_addresses
from relay.shared.entities import RETRY_UNTIL_MS, Series
from relay.shared.scoreboard import SHARED_ROW
from relay.worker.address_rotation import AddressRotation
from tests.support.scoreboard import hosts_board

HOST = "b.example.com"
A, B, C = ((socket.AF_INET, (f"192.0.2.{number}", 443)) for number in (1, 2, 3))


@pytest.fixture
def rotation_and_names():
    """The rotation of a backend's addresses, and a function that changes them."""
    layout, shared = hosts_board(HOST)

    def resolve(*found):
        write_addresses(
            shared, cell_of(layout, HOST), [Located(address) for _, (address, _) in found]
        )

    return AddressRotation(Addresses(f"{HOST}:443", A, layout, shared), 10.0), resolve


def test_each_address_has_its_turn(rotation_and_names):
    rotation, resolve = rotation_and_names
    assert [rotation.pick(0.0) for _ in range(2)] == [A, A]
    resolve(A, B, C)
    assert {rotation.pick(0.0) for _ in range(3)} == {A, B, C}
    assert sorted(rotation.pick(0.0) for _ in range(9)) == sorted([A, B, C] * 3)


def test_a_failed_address_has_no_turn_for_retry_s(rotation_and_names):
    rotation, resolve = rotation_and_names
    resolve(A, B, C)
    assert rotation.failed(B, 0.0)
    assert not rotation.failed(B, 1.0)
    assert {rotation.pick(5.0) for _ in range(6)} == {A, C}
    assert {rotation.pick(11.0) for _ in range(3)} == {A, B, C}


def test_when_all_have_failed_they_are_tried_all_the_same(rotation_and_names):
    rotation, resolve = rotation_and_names
    resolve(A, B)
    for each in (A, B):
        rotation.failed(each, 0.0)
    assert {rotation.pick(1.0) for _ in range(2)} == {A, B}


def test_failed_addresses_do_not_fill_the_memory(rotation_and_names):
    rotation, _ = rotation_and_names
    for number in range(10_000):
        rotation.failed((socket.AF_INET, ("192.0.2.1", number)), 0.0)
    assert len(rotation._failed_until_at) <= 128


def resolve(relay, *addresses):
    """Store addresses of "localhost", as the checker does."""
    write_addresses(
        relay.scoreboard.row(SHARED_ROW),
        cell_of(relay.layout, "localhost"),
        [Located(each) for each in addresses],
    )


def test_a_session_tries_the_next_address(start, backend, call):
    """Only the address is marked failed, and the backend stays in use."""
    only = backend()
    relay = start([f"localhost:{only.port}"], pool="retry_s = 60")
    resolve(
        relay, "127.0.0.2", "127.0.0.1", "127.0.0.3"
    )  # nothing listens at the first and the last
    for number in range(6):
        client = call(relay)
        client.send(b"hello")
        assert client.receive(5) == b"hello"
        client.close()
        assert relay.record(number)["backend"] == "b1"
    assert relay.snapshot().states[Series(RETRY_UNTIL_MS, ("main", "b1"))] == 0
    said = relay.messages()
    assert said.count("its address 127.0.0.2:") == 1
    assert said.count("its address 127.0.0.3:") == 1
    assert "backend b1 failed" not in said


def test_when_all_addresses_fail_the_next_backend_is_used(start, backend, call):
    other = backend()
    relay = start([f"localhost:{other.port}", other.address], pool='retry_s = 60\nbalance = "hash"')
    resolve(relay, "127.0.0.2", "127.0.0.3")
    for number in range(4):
        client = call(relay)
        client.send(b"hello")
        assert client.receive(5) == b"hello"
        client.close()
        assert relay.record(number)["backend"] == "b2"


def test_new_addresses_are_used_by_the_next_session(start, backend, call):
    only = backend()
    relay = start([f"localhost:{only.port}"], pool="retry_s = 60")
    resolve(relay, "127.0.0.2")
    refused = call(relay)
    assert relay.record(0)["reason"] == "backend_refused"
    refused.sock.close()
    resolve(relay, "127.0.0.1")
    client = call(relay)
    client.send(b"hello")
    assert client.receive(5) == b"hello"

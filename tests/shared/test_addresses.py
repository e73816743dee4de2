"""The workers read the addresses that the checker stores."""

from __future__ import annotations

import socket

import pytest

from relay.shared.addresses import Addresses, Located, cell_of, read_addresses, write_addresses
from relay.shared.entities import MAX_ADDRESSES
from tests.support.scoreboard import hosts_board

HOST = "b.example.com"
CONFIGURED = (socket.AF_INET, ("192.0.2.1", 443))


@pytest.fixture
def scoreboard():
    return hosts_board(HOST)


@pytest.fixture
def layout(scoreboard):
    return scoreboard[0]


@pytest.fixture
def shared(scoreboard):
    return scoreboard[1]


def test_addresses_of_both_kinds_come_back_as_they_were(layout, shared):
    first = cell_of(layout, HOST)
    stored = (
        Located("192.0.2.1"),
        Located("255.255.255.255"),
        Located("::1"),
        Located("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
        Located("fe80::1", 3),
        Located("192.0.2.1", 0, 65535, 65535, 65535, 64),
    )
    write_addresses(shared, first, stored)
    assert read_addresses(shared, first) == stored


def test_more_addresses_than_there_is_room_for_are_left_out(layout, shared):
    first = cell_of(layout, HOST)
    write_addresses(shared, first, [Located(f"192.0.2.{number}") for number in range(90)])
    assert len(read_addresses(shared, first)) == MAX_ADDRESSES


def test_the_configured_address_holds_while_none_is_stored(layout, shared):
    """Before the first answer, and after the answer is removed."""
    addresses = Addresses(f"{HOST}:443", CONFIGURED, layout, shared)
    assert addresses.may_change
    assert addresses.endpoints() == (CONFIGURED,)
    write_addresses(shared, cell_of(layout, HOST), [Located("192.0.2.7"), Located("2001:db8::7")])
    assert addresses.endpoints() == (
        (socket.AF_INET, ("192.0.2.7", 443)),
        (socket.AF_INET6, ("2001:db8::7", 443, 0, 0)),
    )
    write_addresses(shared, cell_of(layout, HOST), [])
    assert addresses.endpoints() == (CONFIGURED,)


def test_a_half_written_change_is_not_read(layout, shared):
    """The reader keeps its addresses. The next write repairs the sequence number."""
    first = cell_of(layout, HOST)
    addresses = Addresses(f"{HOST}:443", CONFIGURED, layout, shared)
    write_addresses(shared, first, [Located("192.0.2.7")])
    before = addresses.endpoints()
    shared[first] += 1  # a writer was killed here
    shared[first + 1] = 5
    assert read_addresses(shared, first) is None
    assert addresses.endpoints() == before
    write_addresses(shared, first, [Located("192.0.2.8")])
    assert addresses.endpoints() == ((socket.AF_INET, ("192.0.2.8", 443)),)


def test_an_ip_address_never_changes(layout, shared):
    addresses = Addresses("192.0.2.1:443", CONFIGURED, layout, shared)
    assert not addresses.may_change
    assert addresses.endpoints() == (CONFIGURED,)

"""The endpoints of a service in a worker: by priority, without those that failed."""

from __future__ import annotations

import itertools
import socket

import pytest

from relay.shared.addresses import Addresses, Located, cell_of, write_addresses, write_gone
from relay.worker.service_rotation import ServiceRotation
from tests.support.scoreboard import hosts_board

NAME = "srv:_https._tcp.app.test"
CONFIGURED = (socket.AF_INET, ("192.0.2.9", 9))


def at(number):
    return socket.AF_INET, (f"192.0.2.{number}", 8000 + number)


def record(number, priority=1, weight=1):
    return Located(f"192.0.2.{number}", 0, 8000 + number, priority, weight)


@pytest.fixture
def service():
    """The rotation, and a function that stores records."""
    layout, shared = hosts_board(NAME)
    chances = itertools.cycle(number / 97 for number in range(97))
    addresses = Addresses(NAME, CONFIGURED, layout, shared)
    rotation = ServiceRotation(addresses, 10.0, lambda: next(chances))
    cell = cell_of(layout, NAME)
    return (
        rotation,
        lambda *records: (
            write_addresses(shared, cell, records) if records else write_gone(shared, cell)
        ),
    )


def picked(rotation, now=0.0):
    return {rotation.pick(now) for _ in range(97)}


def test_only_the_lowest_priority_is_used(service):
    rotation, store = service
    store(record(1), record(2), record(3, priority=2))
    assert picked(rotation) == {at(1), at(2)}


def test_the_next_priority_is_used_while_the_first_has_failed(service):
    rotation, store = service
    store(record(1), record(2), record(3, priority=2))
    rotation.failed(at(1), 0.0)
    assert picked(rotation, 1.0) == {at(2)}
    rotation.failed(at(2), 2.0)
    assert picked(rotation, 3.0) == {at(3)}
    assert picked(rotation, 11.0) == {at(1)}
    assert picked(rotation, 13.0) == {at(1), at(2)}


def test_when_all_have_failed_each_is_tried(service):
    rotation, store = service
    store(record(1), record(2), record(3, priority=2))
    for number in (1, 2, 3):
        rotation.failed(at(number), 0.0)
    assert {rotation.pick(1.0) for _ in range(3)} == {at(1), at(2), at(3)}


def test_a_session_tries_a_few_endpoints_only(service):
    rotation, store = service
    store(*(record(number) for number in range(1, 40)))
    assert rotation.others_left(7)
    assert not rotation.others_left(8)


def test_an_endpoint_that_is_gone_is_not_picked_again(service):
    rotation, store = service
    assert picked(rotation) == {CONFIGURED}
    store(record(1), record(2))
    assert picked(rotation) == {at(1), at(2)}
    store(record(2))
    assert picked(rotation) == {at(2)}
    store()
    assert rotation.pick(0.0) is None
    assert not rotation.has_address
    store(record(3))
    assert picked(rotation) == {at(3)}


def test_other_weights_are_used_at_once(service):
    rotation, store = service
    store(record(1, weight=0), record(2, weight=65_535))
    assert picked(rotation) <= {at(1), at(2)}
    store(record(1, weight=65_535), record(2, weight=0))
    picks = [rotation.pick(0.0) for _ in range(97)]
    assert picks.count(at(1)) > 90

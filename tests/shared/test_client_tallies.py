"""Workers name the clients that failed; the supervisor believes nothing."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from relay.core.canary import Part
from relay.core.canary_clients import MOST_CLIENTS
from relay.shared.client_tallies import Failed, Tally, TallySender, parse_tally
from relay.shared.failure_reports import MOST_BYTES, FailureChannel


@pytest.fixture
def channel():
    channel = FailureChannel()
    yield channel
    channel.close()


def test_tallies_arrive_once(channel):
    with channel.writer() as writer:
        sender = TallySender(writer)
        for client in ("a", "b", "a"):
            sender.add_served(client)
            sender.add_failed(Part.CLIENT, "unknown_ca", client)
        sender.send()
        sender.add_served("a")
        sender.send()
    failed = [Failed(Part.CLIENT, "unknown_ca", "a", 2), Failed(Part.CLIENT, "unknown_ca", "b", 1)]
    assert channel.receive(10) == [Tally(("a", "b"), tuple(failed))]


def test_none_is_lost_while_there_is_no_room(channel):
    """Thousands of clients, and a supervisor that reads now and then."""
    served, failed = [], Counter()
    with channel.writer() as writer:
        sender = TallySender(writer)
        for number in range(5000):
            sender.add_served(f"{number:032x}")
            sender.add_failed(Part.SESSION, "not_allowed_during_session", f"{number:032x}")
        for _ in range(1000):
            sender.send()
            for tally in channel.receive(100):
                served += tally.served
                failed.update(each.client for each in tally.failed)
    assert len(served) == len(set(served)) == 5000
    assert len(failed) == failed.total() == 5000


def test_memory_is_bounded_when_nobody_reads(channel):
    with channel.writer() as writer:
        sender = TallySender(writer)
        channel.close()
        for number in range(MOST_CLIENTS + 100):
            sender.add_served(str(number))
            sender.add_failed(Part.CLIENT, "unknown_ca", str(number))
        sender.send()
    assert len(sender._known) == len(sender._served) == len(sender._failed) == MOST_CLIENTS


def test_a_message_fits_into_a_datagram(channel):
    with channel.writer() as writer:
        sender = TallySender(writer)
        for number in range(200):
            sender.add_served(f"{number:032x}")
            for _ in range(1000):
                sender.add_failed(Part.SESSION, "not_allowed_during_session", f"{number:032x}")
        sender.send()
    assert len(channel._reader.recv(MOST_BYTES + 1)) <= MOST_BYTES


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        {"served": "ab", "failed": []},
        {"served": [1], "failed": []},
        {"served": ["a" * 33], "failed": []},
        {"served": [], "failed": [["client", "unknown_ca", "a"]]},
        {"served": [], "failed": [["other", "unknown_ca", "a", 1]]},
        {"served": [], "failed": [["client", "free beer", "a", 1]]},
        {"served": [], "failed": [["client", ["unknown_ca"], "a", 1]]},
        {"served": [], "failed": [["client", "unknown_ca", "a", 0]]},
        {"served": [], "failed": [["client", "unknown_ca", "a", True]]},
        {"served": [], "failed": [["client", "unknown_ca", "a", 1 << 40]]},
    ],
    ids=lambda message: json.dumps(message)[:60],
)
def test_wrong_tallies_are_skipped(message):
    assert parse_tally(message) is None

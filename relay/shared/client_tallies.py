"""What workers tell the supervisor while a canary runs: which clients failed.

The scoreboard counts failures, but not whose they are. Once a second each worker sends
what is new: the clients that it has served, and how often each other one failed and
why. A message is a datagram of the channel of `relay.shared.failure_reports`. When the
kernel has no room for it, it is sent a second later.

The receiver trusts nothing of it.

Never: blocks; has an address in it that `relay.core.canary_clients.client_of` has not
shortened.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from relay.core.canary import Part
from relay.core.canary_clients import MOST_CLIENTS
from relay.errors import Reason

MOST_ENTRIES = 60  # of each kind in a message: 8 KiB hold them
_MOST_CHARACTERS = 32  # of a client
_MOST_TIMES = 1 << 32
_PARTS, _REASONS = frozenset(map(str, Part)), frozenset(map(str, Reason))


class Failed(NamedTuple):
    """A client that failed, and how often."""

    part: Part
    reason: str
    client: str
    times: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What is new since the last message."""

    served: tuple[str, ...] = ()
    failed: tuple[Failed, ...] = ()


class TallySender:
    """Keeps what is new until the supervisor has it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._known: set[str] = set()  # clients that were served
        self._served: list[str] = []
        self._failed: Counter[tuple[Part, str, str]] = Counter()

    def add_served(self, client: str) -> None:
        """A client has reached a backend."""
        if client not in self._known and len(self._known) < MOST_CLIENTS:
            self._known.add(client)
            self._served.append(client)

    def add_failed(self, part: Part, reason: str, client: str) -> None:
        """A client has failed."""
        key = (part, reason, client)
        if key in self._failed or len(self._failed) < MOST_CLIENTS:
            self._failed[key] += 1

    def send(self) -> None:
        """Send what is new, as far as there is room."""
        while self._served or self._failed:
            served = self._served[:MOST_ENTRIES]
            failed = list(islice(self._failed.items(), MOST_ENTRIES))
            message = {"served": served, "failed": [(*key, times) for key, times in failed]}
            try:
                self._socket.send(json.dumps(message).encode())
            except OSError:
                return
            del self._served[: len(served)]
            for key, _ in failed:
                del self._failed[key]


def parse_tally(message: Any) -> Tally | None:
    """A message as JSON has it; None if it is not one."""
    try:
        served, failed = message["served"], [Failed(*each) for each in message["failed"]]
    except (TypeError, LookupError):
        return None
    good = isinstance(served, list) and all(map(_is_client, served)) and all(map(_is_good, failed))
    if not good:
        return None
    return Tally(tuple(served), tuple(each._replace(part=Part(each.part)) for each in failed))


def _is_client(client: object) -> bool:
    return isinstance(client, str) and len(client) <= _MOST_CHARACTERS


def _is_good(one: Failed) -> bool:
    return (
        isinstance(one.part, str)
        and isinstance(one.reason, str)
        and one.part in _PARTS
        and one.reason in _REASONS
        and _is_client(one.client)
        and type(one.times) is int
        and 0 < one.times < _MOST_TIMES
    )

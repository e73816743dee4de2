"""Compares what clients, access log and metrics of a gateway have counted.

Without kills, all three have the same handshakes and bytes. The last bytes of a killed
worker's sessions are in no counter, or not at the client. So the metrics may differ by
one handshake and one record for each client of a killed worker, and no more. The log
is not compared then: a killed worker also loses lines that it had not written yet.

Never: decides which clients are lost.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.endurance_load import RECORD_BYTES

ACCESS_LOG = "access log"


class Counts(NamedTuple):
    """TLS handshakes with clients, and bytes from them and to them."""

    handshakes: int
    bytes_in: int
    bytes_out: int


def clients_counts(*parts: dict[str, Any]) -> Counts:
    """What the clients have counted."""
    return Counts(
        sum(each["handshakes"] for each in parts),
        sum(each["bytes_sent"] for each in parts),
        sum(each["bytes_received"] for each in parts),
    )


def differences(
    clients: Counts, gateway: dict[str, Counts], interrupted: int, ended: int
) -> list[str]:
    """What differs by more than the interrupted clients explain.

    `interrupted` is the number of clients of killed workers. `ended` is that of the
    other excused ones: what was under way is counted by the gateway, but not received.
    """
    found = []
    records = RECORD_BYTES * (interrupted + ended)
    rooms = Counts(interrupted, records, records)
    for source, counts in gateway.items():
        if source == ACCESS_LOG and interrupted:
            continue
        found += [
            f"{name}: the clients count {ours}, the {source} {theirs}"
            for name, ours, theirs, room in zip(Counts._fields, clients, counts, rooms, strict=True)
            if abs(ours - theirs) > room
        ]
    return found


def growing(samples: list[dict[str, Any]], growth: dict[str, list[float]]) -> list[str]:
    """Which series are clearly higher at the end than in the beginning."""
    if len(samples) < _ENOUGH_SAMPLES:
        return []
    found = []
    for name, (early, _, late) in growth.items():
        room = _ROOM_KIB if name.endswith("_kib") else _ROOM_FILES
        if late > _FACTOR * early + room:
            found.append(f"{name} grew from {early:g} to {late:g}")
    return found


# One a second. In a shorter run, the sum over all workers shows how many of them drain
# at its beginning and at its end, and no leak.
_ENOUGH_SAMPLES = 600
_FACTOR = 1.25
_ROOM_KIB = 4096
_ROOM_FILES = 32

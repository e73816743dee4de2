"""Compares what clients, access log and metrics of a gateway have counted.

Without kills, all three have the same handshakes and bytes. A worker that is killed
writes no line for its sessions, and their last bytes are in no counter, or not at the
client. So the sums may differ by one line and one record for each client of a killed
worker, and no more.

Never: decides which clients are lost.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.endurance_load import RECORD_BYTES


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
        found += [
            f"{name}: the clients count {ours}, the {source} {theirs}"
            for name, ours, theirs, room in zip(Counts._fields, clients, counts, rooms, strict=True)
            if abs(ours - theirs) > (room if source == "metrics" else _log_room(name, room, ours))
        ]
    return found


def _log_room(name: str, room: int, ours: int) -> int:
    """The log has no line of a killed worker's sessions, so no bytes of them at all."""
    return ours if name != "handshakes" and room else room


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


_ENOUGH_SAMPLES = 60
_FACTOR = 1.25
_ROOM_KIB = 4096
_ROOM_FILES = 32

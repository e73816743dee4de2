"""The revoked certificates of one trust set, in one buffer that all workers share.

The buffer has a JSON header that describes the lists, one sorted array of 64-bit
hashes, and beside it 4 bytes for each entry: the day, the reason and the list. A
look-up is a binary search in the array and copies nothing.

A hash is the start of SHA-256(issuer key id, serial number). Among a million entries, a
certificate that is not revoked matches one by chance with a probability of 5e-14.

Never: verifies a list, or raises anything but ValueError for a damaged buffer.
"""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple

from relay.shared.sealed_memory import SharedBytes
from relay.tls.revocation.distribution_points import Scope
from relay.tls.revocation.fields import REASONS, REMOVED, RevokedEntry

_MAGIC = b"revoked1"
_HEAD = struct.Struct("=8sQLL")  # magic, entries, size of the header, its CRC-32
_FIRST_8 = struct.Struct("=Q")
# A detail is 16 bits for the day, 4 for the reason and 12 for the list.
_REASON_SHIFT, _DAY_SHIFT, _LIST_MASK = 12, 16, 0xFFF
MOST_LISTS = _LIST_MASK + 1


@dataclass(frozen=True, slots=True)
class ListInfo:
    """One list that is part of a set. Times are Unix time.

    `number` and `this_update` are those of the newest delta, if there is one. With
    `next_update` None the list does not expire. `shares_key`: CAs of other names have
    the same key.
    """

    issuer_key: bytes
    issuer: str
    number: int | None
    this_update: float
    next_update: float | None
    scope: Scope
    source: str
    entries: int = 0
    delta: int | None = None  # the number of the delta that was applied
    shares_key: bool = False

    @property
    def ends_at(self) -> float:
        """The next update, or infinity."""
        return float("inf") if self.next_update is None else self.next_update

    @property
    def name(self) -> str:
        """For messages."""
        number = "" if self.number is None else f" {self.number}"
        return f'CRL{number} of "{self.issuer}" from {self.source}'


_UNKNOWN = ListInfo(b"", "an unknown CA", None, 0.0, None, Scope(), "an unknown source")


class Entry(NamedTuple):
    """One revoked certificate: on which day, why, and which list says so."""

    day: str  # "" if it is not known
    reason: str
    source: ListInfo

    @property
    def sentence(self) -> str:
        """For messages: "revoked 2026-11-26 (key compromise), CRL 17 of …"."""
        day = f" {self.day}" if self.day else ""
        reason = "" if self.reason == REASONS[0] else f" ({self.reason})"
        return f"revoked{day}{reason}, {self.source.name}"


class Packed(NamedTuple):
    """The entries of one list, each a hash (upper 64 bits) and its detail.

    `removed` has the hashes of the entries that a delta takes out of a complete list.
    """

    entries: list[int]
    removed: frozenset[int] = frozenset()


def pack(issuer_key: bytes, entries: Iterable[RevokedEntry]) -> Packed:
    """Pack the entries of one list."""
    first = _FIRST_8.unpack_from
    packed: list[int] = []
    removed: set[int] = set()
    for serial, day, reason in entries:
        (wanted,) = first(sha256(issuer_key + serial).digest())
        if reason == REMOVED:
            removed.add(wanted)
        else:
            packed.append(wanted << 32 | day << _DAY_SHIFT | reason << _REASON_SHIFT)
    return Packed(packed, frozenset(removed))


def with_delta(complete: Packed, delta: Packed) -> Packed:
    """A complete list's entries after a delta."""
    changed = delta.removed.union(each >> 32 for each in delta.entries)
    kept = [each for each in complete.entries if each >> 32 not in changed]
    return Packed(kept + delta.entries)


def build(lists: Sequence[tuple[ListInfo, Packed]]) -> bytes:
    """The buffer for these lists, each with its packed entries."""
    if len(lists) > MOST_LISTS:
        raise ValueError(f"a set has more than {MOST_LISTS} lists")
    every: list[int] = []
    for index, (_, packed) in enumerate(lists):
        every += [each | index for each in packed.entries] if index else packed.entries
    every.sort()
    header = json.dumps(
        [_encode(replace(info, entries=len(packed.entries))) for info, packed in lists]
    ).encode()
    header += b" " * (-(_HEAD.size + len(header)) % 8)
    head = _HEAD.pack(_MAGIC, len(every), len(header), zlib.crc32(header))
    hashes = array("Q", [each >> 32 for each in every])
    details = array("I", [each & 0xFFFFFFFF for each in every])
    return b"".join((head, header, memoryview(hashes), memoryview(details)))


class RevokedSet:
    """Looks certificates up in a buffer, which must not change any more.

    `memory` holds the buffer, if other processes can get it. Raises ValueError if the
    buffer is not one that `build` made.
    """

    __slots__ = (
        "_by_key",
        "_count",
        "_details",
        "_hashes",
        "covered",
        "ends",
        "lists",
        "memory",
        "passed",
    )

    def __init__(self, buffer: Any, memory: SharedBytes | None = None) -> None:
        self.memory = memory
        view = memoryview(buffer).cast("B")
        if len(view) < _HEAD.size:
            raise ValueError("the set of revoked certificates is too short")
        magic, count, size, checksum = _HEAD.unpack_from(view)
        start = _HEAD.size + size
        if magic != _MAGIC or len(view) != start + 12 * count:
            raise ValueError("this is not a set of revoked certificates")
        header = bytes(view[_HEAD.size : start])
        if zlib.crc32(header) != checksum:
            raise ValueError("the header of the set of revoked certificates is damaged")
        self.lists: tuple[ListInfo, ...] = tuple(map(_decode, json.loads(header)))
        # What `tls.revocation.judge` has found with this set.
        self.passed: dict[str, Any] = {}
        self.covered: dict[tuple[str, bytes], float] = {}
        self._count: int = count
        self._hashes: Any = view[start : start + 8 * count].cast("Q")
        self._details: Any = view[start + 8 * count :].cast("I")
        self._by_key: dict[bytes, tuple[ListInfo, ...]] = {}
        for each in self.lists:
            self._by_key[each.issuer_key] = (*self._by_key.get(each.issuer_key, ()), each)
        # Until when everything is covered that a key has signed, if one list covers it.
        self.ends: dict[bytes, float] = {
            key: lists[0].ends_at
            for key, lists in self._by_key.items()
            if len(lists) == 1 and lists[0].scope == Scope() and not lists[0].shares_key
        }

    def __len__(self) -> int:
        return self._count

    def lists_of(self, issuer_key: bytes) -> tuple[ListInfo, ...]:
        """The lists that were signed with this key."""
        return self._by_key.get(issuer_key, ())

    def packed(self, indexes: Iterable[int]) -> dict[int, Packed]:
        """The entries of some of the lists, to build another set with them."""
        found: dict[int, list[int]] = {index: [] for index in indexes}
        for wanted, detail in zip(self._hashes, self._details, strict=True):
            index = detail & _LIST_MASK
            if index in found:
                found[index].append(wanted << 32 | detail ^ index)
        return {index: Packed(entries) for index, entries in found.items()}

    def find(self, issuer_key: bytes, serial: bytes) -> Entry | None:
        """The entry of a certificate, if it is revoked.

        `serial` is what the DER of the INTEGER contains.
        """
        (wanted,) = _FIRST_8.unpack_from(sha256(issuer_key + serial).digest())
        at = bisect_left(self._hashes, wanted)
        if at == self._count or self._hashes[at] != wanted:
            return None
        return self._entry(self._details[at])

    def _entry(self, detail: int) -> Entry:
        day, reason = detail >> _DAY_SHIFT, detail >> _REASON_SHIFT & 0xF
        date = datetime.fromtimestamp(0, UTC) + timedelta(days=day)
        index = detail & _LIST_MASK
        return Entry(
            f"{date:%Y-%m-%d}" if day else "",
            REASONS[reason] if reason < len(REASONS) else REASONS[0],
            self.lists[index] if index < len(self.lists) else _UNKNOWN,
        )


def shared_set(name: str, buffer: bytes) -> RevokedSet:
    """A set in memory that other processes can get. Raises OSError without memory."""
    memory = SharedBytes(f"revoked-{name}", buffer)
    return RevokedSet(memory.map, memory)


def _encode(info: ListInfo) -> dict[str, object]:
    return {
        "key": info.issuer_key.hex(),
        "issuer": info.issuer,
        "number": info.number,
        "this_update": info.this_update,
        "next_update": info.next_update,
        "uris": info.scope.uris,
        "only": info.scope.only,
        "source": info.source,
        "entries": info.entries,
        "delta": info.delta,
        "shares_key": info.shares_key,
    }


def _decode(value: dict[str, Any]) -> ListInfo:
    return ListInfo(
        bytes.fromhex(value["key"]),
        value["issuer"],
        value["number"],
        value["this_update"],
        value["next_update"],
        Scope(tuple(value["uris"]), value["only"]),
        value["source"],
        value["entries"],
        value["delta"],
        value["shares_key"],
    )

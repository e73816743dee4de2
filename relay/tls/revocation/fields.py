"""Splits a revocation list into its fields and entries (RFC 5280, 5.1).

The reader is the relay's own, as for certificates: cryptography does not parse every
name that OpenSSL verifies, and needs seconds for a list of a million entries.

Never: verifies a signature, or raises anything but DerError and CrlError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from relay.tls.certificates.der import (
    BIT_STRING,
    INTEGER,
    OID,
    SEQUENCE,
    DerError,
    Element,
    Extension,
    children,
    dotted,
    extensions_in,
    read,
)
from relay.tls.certificates.names import unix_time

_UTC_TIME, _GENERALIZED_TIME, _ENUMERATED, _EXTENSIONS = 0x17, 0x18, 0x0A, 0xA0
_REASON, _INVALIDITY_DATE = bytes.fromhex("551d15"), bytes.fromhex("551d18")
_HOLD_INSTRUCTION, _CERTIFICATE_ISSUER = bytes.fromhex("551d17"), bytes.fromhex("551d1d")
_HARMLESS = frozenset((_INVALIDITY_DATE, _HOLD_INSTRUCTION))
_CACHED = 4096
_DAY_S = 86400
# CRLReason (RFC 5280, 5.3.1); 7 is not used.
REASONS = (
    "unspecified",
    "key compromise",
    "CA compromise",
    "affiliation changed",
    "superseded",
    "cessation of operation",
    "certificate hold",
    "",
    "remove from CRL",
    "privilege withdrawn",
    "AA compromise",
)
REMOVED = 8


class CrlError(ValueError):
    """Why a list cannot be used, and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


class CrlFields(NamedTuple):
    """The fields of a list. `signed`, `issuer` and `algorithm` are whole elements."""

    signed: tuple[int, int]  # where the part that the signature covers starts and stops
    algorithm: bytes  # AlgorithmIdentifier
    signature: bytes
    issuer: bytes
    this_update: float
    next_update: float | None
    entries: tuple[int, int]  # where they start and stop
    extensions: tuple[Extension, ...]


class RevokedEntry(NamedTuple):
    """One entry: `day` is the number of days since 1970, 0 if it is not known."""

    serial: bytes  # the contents of the INTEGER
    day: int
    reason: int


def read_fields(der: bytes) -> CrlFields:
    """Split a list into its fields. Raises DerError."""
    outer = read(der, 0, len(der))
    if outer.tag != SEQUENCE:
        raise DerError("does not start like a list")
    if der[outer.after :].strip(b"\r\n "):
        raise DerError(f"has {len(der) - outer.after} bytes after its end")
    signed, algorithm, signature = _exactly(der, outer, (SEQUENCE, SEQUENCE, BIT_STRING))
    at, stop = signed.start, signed.stop
    first = read(der, at, stop)
    if first.tag == INTEGER:  # the version, which the first version of the format lacks
        at = first.after
    inner = _expect(der, at, stop, SEQUENCE)
    if der[at : inner.after] != der[signed.after : algorithm.after]:
        raise DerError("names two different signature algorithms")
    issuer = _expect(der, inner.after, stop, SEQUENCE)
    this_update, at = _time(der, issuer.after, stop)
    next_update = None
    if at < stop and der[at] in {_UTC_TIME, _GENERALIZED_TIME}:
        next_update, at = _time(der, at, stop)
    entries = (at, at)
    if at < stop and der[at] == SEQUENCE:
        listed = read(der, at, stop)
        entries, at = (listed.start, listed.stop), listed.after
    return CrlFields(
        (outer.start, signed.after),
        der[signed.after : algorithm.after],
        der[signature.start + 1 : signature.stop],
        der[inner.after : issuer.after],
        this_update,
        next_update,
        entries,
        _extensions(der, at, stop),
    )


def read_entries(der: bytes, entries: tuple[int, int]) -> Iterator[RevokedEntry]:
    """The entries of a list. Raises DerError, and CrlError for what cannot be used.

    It takes about 1 µs per entry: a list may have a million of them.
    """
    at, stop = entries
    days: dict[bytes, int] = {}
    reasons: dict[bytes, int] = {b"": 0}
    while at < stop:
        # The usual form, without a call: all lengths are below 128.
        size = serial_size = date_size = 128
        lead = 0
        if at + 5 < stop:
            size, serial_size, lead = der[at + 1], der[at + 3], der[at + 4]
            date_at = at + 4 + serial_size
            if date_at + 1 < stop:
                date_size = der[date_at + 1]
        after = at + 2 + size
        begin = date_at + 2 + date_size if date_size < 128 else stop + 1
        if (
            size < 128
            and 0 < serial_size < 128
            and begin <= after <= stop
            and der[at] == SEQUENCE
            and der[at + 2] == INTEGER
            and (0 < lead < 255 or (lead ^ der[at + 5]) & 0x80)  # as short as it can be
            and der[date_at] in {_UTC_TIME, _GENERALIZED_TIME}
        ):
            serial, date, more = der[at + 4 : date_at], der[date_at:begin], der[begin:after]
        else:
            after, serial, date, more = _split_entry(der, at, stop)
        key = date[:10] if date[0] == _GENERALIZED_TIME else date[:8]
        day = days.get(key)
        if day is None:
            day = days[key] = _day_of(date)
        reason = reasons.get(more)
        if reason is None:
            reason = _reason_of(more)
            if len(reasons) < _CACHED:
                reasons[more] = reason
        yield RevokedEntry(serial, day, reason)
        at = after


def integer(value: bytes) -> int:
    """A non-negative INTEGER of an extension. Raises DerError."""
    element = read(value, 0, len(value))
    size = element.stop - element.start
    number = int.from_bytes(value[element.start : element.stop], signed=True)
    if element.tag != INTEGER or not 0 < size <= 21 or number < 0 or element.after != len(value):
        raise DerError("has a malformed number")
    return number


def _split_entry(der: bytes, at: int, stop: int) -> tuple[int, bytes, bytes, bytes]:
    """An entry's end, serial number, date (a whole element) and extensions."""
    entry = _expect(der, at, stop, SEQUENCE)
    serial = _expect(der, entry.start, entry.stop, INTEGER)
    date = read(der, serial.after, entry.stop)
    if date.tag not in {_UTC_TIME, _GENERALIZED_TIME}:
        raise DerError("has an entry without a date")
    # In the short form, as the usual entries have it.
    text = der[date.start : date.stop][:127]
    whole = bytes((date.tag, len(text))) + text
    number = _shortest(der[serial.start : serial.stop])
    return entry.after, number, whole, der[date.after : entry.after]


def _shortest(number: bytes) -> bytes:
    """The contents of an INTEGER without needless bytes (X.690, 8.3.2).

    A certificate's have none, because OpenSSL parses no other.
    """
    if not number:
        raise DerError("has an entry without a serial number")
    value = int.from_bytes(number, signed=True)
    return value.to_bytes((value + (value < 0)).bit_length() // 8 + 1, signed=True)


def _day_of(date: bytes) -> int:
    # The time of day does not matter, so an unusual one does not either.
    digits = 8 if date[0] == _GENERALIZED_TIME else 6
    at = unix_time(date[0], date[2 : 2 + digits] + b"000000Z")
    return 0 if at is None else min(max(int(at) // _DAY_S, 0), 0xFFFF)


def _reason_of(more: bytes) -> int:
    listed = read(more, 0, len(more))
    if listed.tag != SEQUENCE or listed.after != len(more):
        raise DerError("has a malformed entry")
    reason = 0
    for each in extensions_in(more, listed):
        if each.oid == _REASON:
            code = read(each.value, 0, len(each.value))
            if code.tag != _ENUMERATED or code.stop != code.start + 1:
                raise DerError("has an entry with a malformed reason")
            reason = each.value[code.start]
            if reason >= len(REASONS):
                reason = 0
        elif each.oid == _CERTIFICATE_ISSUER:
            raise CrlError(
                "is an indirect list: it has entries for certificates of other CAs",
                "use the list that the CA signs for its own certificates",
            )
        elif each.critical and each.oid not in _HARMLESS:
            raise CrlError(
                f"has an entry with a critical extension that the relay does not know:"
                f" {dotted(each.oid)}",
                "have the CA issue the list without it",
            )
    return reason


def _time(der: bytes, at: int, stop: int) -> tuple[float, int]:
    element = read(der, at, stop)
    found = unix_time(element.tag, der[element.start : element.stop])
    if found is None:
        raise DerError("has a date in a format that is not allowed")
    return found, element.after


def _extensions(der: bytes, at: int, stop: int) -> tuple[Extension, ...]:
    if at == stop:
        return ()
    wrapper = _expect(der, at, stop, _EXTENSIONS)
    listed = _expect(der, wrapper.start, wrapper.stop, SEQUENCE)
    if wrapper.after != stop or listed.after != wrapper.stop:
        raise DerError("has fields that no list has")
    return extensions_in(der, listed)


def _expect(der: bytes, at: int, stop: int, tag: int) -> Element:
    element = read(der, at, stop)
    if element.tag != tag:
        raise DerError("does not have the fields of a list in their order")
    return element


def _exactly(der: bytes, outer: Element, tags: tuple[int, ...]) -> list[Element]:
    parts = children(der, outer.start, outer.stop, len(tags))
    if tuple(each.tag for each in parts) != tags:
        raise DerError("does not have the fields of a list in their order")
    return parts


def algorithm_parts(identifier: bytes) -> tuple[str, bytes]:
    """The OID of an AlgorithmIdentifier, and its parameters. Raises DerError."""
    outer = read(identifier, 0, len(identifier))
    oid = _expect(identifier, outer.start, outer.stop, OID)
    return dotted(identifier[oid.start : oid.stop]), identifier[oid.after : outer.stop]

"""Splits a certificate into its fields (X.690, RFC 5280), without validating them.

OpenSSL has parsed the same bytes before, and decides what is a valid certificate. But
its bindings do not return everything (extensions, the encoded public key), and
cryptography refuses certificates that OpenSSL verifies: with an underscore in a
PrintableString, an encoded `critical: FALSE`, or version 4. So this reader accepts what
OpenSSL accepts, including lengths in more bytes than needed. It does not accept
elements of indefinite length (BER); for those, `tls.certificates.x509_fields` asks
OpenSSL.

Never: reads more than a bounded number of elements, or raises anything but DerError.
"""

from __future__ import annotations

from typing import NamedTuple

INTEGER, BIT_STRING, OCTET_STRING, OID = 0x02, 0x03, 0x04, 0x06
SEQUENCE, SET, BOOLEAN = 0x30, 0x31, 0x01
_VERSION, _UNIQUE_IDS, _EXTENSIONS = 0xA0, (0x81, 0x82, 0xA1, 0xA2), 0xA3
MAX_EXTENSIONS = 256


class DerError(ValueError):
    """The bytes are malformed, or have too many elements."""


class Element(NamedTuple):
    """One element: its tag, its contents' bounds, and where the next one starts."""

    tag: int
    start: int
    stop: int
    after: int


class Extension(NamedTuple):
    """One extension: the contents of its OID, and its value."""

    oid: bytes
    critical: bool
    value: bytes


class Fields(NamedTuple):
    """The fields of a certificate. Names, `spki` and `signature` are whole elements."""

    version: int
    serial: bytes  # the contents of the INTEGER
    signature: bytes  # AlgorithmIdentifier
    issuer: bytes
    not_before: tuple[int, bytes]  # tag and contents
    not_after: tuple[int, bytes]
    subject: bytes
    spki: bytes
    extensions: tuple[Extension, ...] | None  # None: unreadable, or too many


def read(data: bytes, at: int, end: int) -> Element:
    """The element that starts at `at`. It must stop at or before `end`."""
    if at + 2 > end:
        raise DerError("ends in the middle of an element")
    tag, size = data[at], data[at + 1]
    if tag & 0x1F == 0x1F:
        raise DerError("has a tag of several bytes")
    at += 2
    if size > 0x80:
        length = size & 0x7F
        if length > 8 or at + length > end:
            raise DerError("has a length of too many bytes")
        size = int.from_bytes(data[at : at + length])
        at += length
    elif size == 0x80:
        raise DerError("has an element of indefinite length")
    stop = at + size
    if stop > end:
        raise DerError("has an element that is longer than its parent")
    return Element(tag, at, stop, stop)


def children(data: bytes, start: int, stop: int, most: int) -> list[Element]:
    """The elements between two positions.

    Raises DerError if there are more than `most`.
    """
    found: list[Element] = []
    while start < stop:
        if len(found) == most:
            raise DerError(f"has more than {most} parts")
        each = read(data, start, stop)
        found.append(each)
        start = each.after
    return found


def inside(data: bytes, tag: int, most: int) -> list[Element]:
    """The children of the one element, with this tag, that makes up `data`."""
    outer = read(data, 0, len(data))
    if outer.tag != tag or outer.after != len(data):
        raise DerError("has an unexpected type")
    return children(data, outer.start, outer.stop, most)


def read_certificate(der: bytes) -> Fields:
    """Split a certificate into its fields."""
    outer = read(der, 0, len(der))
    body = read(der, outer.start, outer.stop)
    at, stop = body.start, body.stop
    first = read(der, at, stop)
    version = 0
    if first.tag == _VERSION:
        number = read(der, first.start, first.stop)
        version = int.from_bytes(der[number.start : number.stop][:8], signed=True)
        at = first.after
    parts: list[Element] = []
    for expected in (INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE):
        each = read(der, at, stop)
        if each.tag != expected:
            raise DerError("does not have the fields of a certificate in their order")
        parts.append(each)
        at = each.after
    serial, signature, issuer, validity, subject, spki = parts
    begin = read(der, validity.start, validity.stop)
    end = read(der, begin.after, validity.stop)
    return Fields(
        version + 1,
        der[serial.start : serial.stop],
        _whole(der, signature, serial),
        _whole(der, issuer, signature),
        (begin.tag, der[begin.start : begin.stop]),
        (end.tag, der[end.start : end.stop]),
        _whole(der, subject, validity),
        _whole(der, spki, subject),
        _extensions(der, at, stop),
    )


def _whole(der: bytes, element: Element, before: Element) -> bytes:
    """An element with its tag and length: it starts where the previous one ends."""
    return der[before.after : element.after]


def _extensions(der: bytes, at: int, stop: int) -> tuple[Extension, ...] | None:
    try:
        for part in children(der, at, stop, 3):
            if part.tag == _EXTENSIONS:
                return extensions_in(der, read(der, part.start, part.stop))
            if part.tag not in _UNIQUE_IDS:
                raise DerError("has a field that no certificate has")
    except DerError:
        return None
    return ()


def extensions_in(der: bytes, listed: Element) -> tuple[Extension, ...]:
    """The extensions of a list of them. Raises DerError."""
    every = children(der, listed.start, listed.stop, MAX_EXTENSIONS)
    return tuple(_extension(der, each) for each in every)


def _extension(der: bytes, element: Element) -> Extension:
    parts = children(der, element.start, element.stop, 3)
    if len(parts) not in {2, 3} or parts[0].tag != OID or parts[-1].tag != OCTET_STRING:
        raise DerError("has a malformed extension")
    critical = len(parts) == 3 and der[parts[1].start : parts[1].stop] != b"\0"
    name, value = parts[0], parts[-1]
    return Extension(der[name.start : name.stop], critical, der[value.start : value.stop])


def dotted(oid: bytes) -> str:
    """The contents of an OID in dotted notation (X.690, 8.19)."""
    numbers: list[int] = []
    number = 0
    for byte in oid[:64]:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    if not numbers:
        return ""
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))

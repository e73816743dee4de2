"""Decodes distinguished names and subject alternative names from DER.

A string's tag selects its encoding, as in OpenSSL; characters that the type does not
allow are kept. So a PrintableString with an underscore is decoded like any other.

Never: guesses text. A value that cannot be decoded is shown in hexadecimal, and no rule
is compared with it.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from relay.core.untrusted import clip
from relay.tls.certificates.der import OID, SEQUENCE, SET, DerError, children, dotted, inside, read

COMMON_NAME, ORGANIZATIONAL_UNIT = bytes.fromhex("550403"), bytes.fromhex("55040b")
SUBJECT_ALT_NAME = bytes.fromhex("551d11")
_SHORT = {
    COMMON_NAME: "CN",
    bytes.fromhex("550407"): "L",
    bytes.fromhex("550408"): "ST",
    bytes.fromhex("55040a"): "O",
    ORGANIZATIONAL_UNIT: "OU",
    bytes.fromhex("550406"): "C",
    bytes.fromhex("550409"): "STREET",
    bytes.fromhex("0992268993f22c640119"): "DC",
    bytes.fromhex("0992268993f22c640101"): "UID",
}
# One byte per character; OpenSSL reads all of these as Latin-1.
_BYTE_STRINGS = frozenset((18, 19, 20, 22, 26, 27))
_ENCODINGS = {12: "utf-8", 30: "utf-16-be", 28: "utf-32-be"}
_EMAIL, _DNS, _URI, _IP = 0x81, 0x82, 0x86, 0x87
_KINDS = {_EMAIL: "email", _DNS: "san_dns", _URI: "san_uri", _IP: "ip"}
MAX_ATTRIBUTES = 128
MAX_ALT_NAMES = 1024
# A SPIFFE ID has at most 2048 bytes; rules are not meant for longer names.
MAX_NAME_BYTES = 2048
_UTC_TIME, _GENERALIZED_TIME = 23, 24
_SPECIAL = frozenset('\\"+,;<>')


class Attribute(NamedTuple):
    """One attribute of a name; `value` is None if it cannot be decoded."""

    rdn: int
    oid: bytes
    value: str | None
    raw: bytes


class AltNames(NamedTuple):
    """The subject alternative names that the relay uses; an IP is 4 or 16 bytes.

    `skipped`: the kinds, by their keys in `allow`, of which a name cannot be compared.
    """

    dns: tuple[str, ...] = ()
    uri: tuple[str, ...] = ()
    ip: tuple[bytes, ...] = ()
    email: tuple[str, ...] = ()
    skipped: frozenset[str] = frozenset()


def attributes_of(name: bytes) -> list[Attribute]:
    """A distinguished name's attributes, in the certificate's order.

    Raises DerError.
    """
    return list(_attributes(name))


def _attributes(name: bytes) -> Iterator[Attribute]:
    count = 0
    for number, rdn in enumerate(inside(name, SEQUENCE, MAX_ATTRIBUTES)):
        if rdn.tag != SET:
            raise DerError("has a malformed name")
        for pair in children(name, rdn.start, rdn.stop, MAX_ATTRIBUTES):
            count += 1
            if count > MAX_ATTRIBUTES:
                raise DerError(f"has a name of more than {MAX_ATTRIBUTES} attributes")
            oid = read(name, pair.start, pair.stop)
            if pair.tag != SEQUENCE or oid.tag != OID:
                raise DerError("has a malformed name")
            value = read(name, oid.after, pair.stop)
            raw = name[value.start : value.stop]
            yield Attribute(number, name[oid.start : oid.stop], decode(value.tag, raw), raw)


def decode(tag: int, raw: bytes) -> str | None:
    """The text of a string; None if it cannot be decoded."""
    if tag in _BYTE_STRINGS:
        return raw.decode("latin-1")
    encoding = _ENCODINGS.get(tag)
    if encoding is None:
        return None
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def render(attributes: list[Attribute]) -> str:
    """A name as RFC 4514 writes it, most specific part first, clipped to one line."""
    parts: list[str] = []
    size = 0
    last = -1
    for each in reversed(_by_rdn(attributes)):
        text = f"{_SHORT.get(each.oid) or dotted(each.oid)}={_escape(each.value, each.raw)}"
        parts += (("+" if each.rdn == last else ",") if parts else "", text)
        last = each.rdn
        size += len(text) + 1
        if size > 1024:
            break
    return clip("".join(parts))


def _by_rdn(attributes: list[Attribute]) -> list[Attribute]:
    """Reverse the attributes inside each RDN: `render` reverses all of them again."""
    if not attributes or len(attributes) == attributes[-1].rdn + 1:
        return attributes
    found: list[Attribute] = []
    for _, part in groupby(attributes, key=attrgetter("rdn")):
        found += [*part][::-1]
    return found


def _escape(value: str | None, raw: bytes) -> str:
    if value is None:
        return "#" + raw[:64].hex()
    text = value[:1024]
    if not _SPECIAL.isdisjoint(text):
        text = "".join(f"\\{char}" if char in _SPECIAL else char for char in text)
    text = text.replace("\0", "\\00")
    if text[:1] == "#" or (text[:1] == " " and len(text) > 1):
        text = "\\" + text
    return text[:-1] + "\\ " if text[-1:] == " " else text


def values_of(attributes: list[Attribute], oid: bytes) -> tuple[str, ...]:
    """The values that a rule may compare: all decoded attributes with this OID."""
    return tuple(
        each.value
        for each in attributes
        if each.oid == oid and each.value is not None and len(each.raw) <= MAX_NAME_BYTES
    )


def has_unreadable(attributes: list[Attribute], oid: bytes) -> bool:
    """Whether `values_of` leaves out an attribute with this OID."""
    return any(
        each.oid == oid and (each.value is None or len(each.raw) > MAX_NAME_BYTES)
        for each in attributes
    )


def alt_names_of(value: bytes) -> AltNames:
    """The names of a subjectAltName extension. Raises DerError if it is malformed.

    Other kinds of names (x400Address, ediPartyName) are skipped. So are DNS names, URIs
    and mail addresses that are not ASCII: no rule can refer to them.
    """
    texts: dict[int, list[str]] = {_EMAIL: [], _DNS: [], _URI: []}
    ip: list[bytes] = []
    skipped: set[str] = set()
    for each in inside(value, SEQUENCE, MAX_ALT_NAMES):
        kind = _KINDS.get(each.tag)
        if kind is None:
            continue
        raw = value[each.start : each.stop]
        if each.tag == _IP and len(raw) in {4, 16}:
            ip.append(raw)
        elif each.tag != _IP and len(raw) <= MAX_NAME_BYTES and raw.isascii() and b"\0" not in raw:
            texts[each.tag].append(raw.decode("ascii"))
        else:
            skipped.add(kind)
    return AltNames(
        tuple(texts[_DNS]), tuple(texts[_URI]), tuple(ip), tuple(texts[_EMAIL]), frozenset(skipped)
    )


def unix_time(tag: int, text: bytes) -> float | None:
    """A date of a certificate in Unix seconds (RFC 5280, 4.1.2.5).

    None for another format; OpenSSL refuses a certificate with such a date.
    """
    digits = text[:-1]
    if text[-1:] != b"Z" or not digits.isdigit():
        return None
    if tag == _UTC_TIME and len(digits) == 12:
        year = int(digits[:2])
        year += 2000 if year < 50 else 1900
        rest = digits[2:]
    elif tag == _GENERALIZED_TIME and len(digits) == 14:
        year, rest = int(digits[:4]), digits[4:]
    else:
        return None
    month, day, hour, minute, second = (int(rest[at : at + 2]) for at in range(0, 10, 2))
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60):
        return None
    year = max(year, 1)  # Python's calendar has no year 0
    if day > calendar.monthrange(year, month)[1]:
        return None
    return float(calendar.timegm((year, month, day, hour, minute, second)))


def serial_text(content: bytes) -> str:
    """A serial number as `openssl x509 -serial` prints it, clipped."""
    if content[:1] >= b"\x80":
        number = -int.from_bytes(content[:64], signed=True)
        text = "-" + number.to_bytes((number.bit_length() + 7) // 8).hex().upper()
    else:
        text = content[:64].lstrip(b"\0").hex().upper() or "00"
    return text if len(content) <= 64 else f"{text[:64]}… ({len(content)} bytes)"

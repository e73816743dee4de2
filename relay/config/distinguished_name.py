"""Distinguished names as RFC 4514 writes them, for example "CN=Clients CA,O=Example".

Names are compared as OpenSSL compares them: without case of ASCII letters, and with
repeated spaces as one. The order of the parts matters.

Never: sees a certificate.
"""

from __future__ import annotations

import re
from typing import TypeAlias

# From the most general part to the most specific one, as in a certificate. Each part
# has one or more pairs of a dotted OID and a folded value.
NameKey: TypeAlias = tuple[tuple[tuple[str, str], ...], ...]

_TYPES = {
    "CN": "2.5.4.3",
    "SN": "2.5.4.4",
    "SURNAME": "2.5.4.4",
    "SERIALNUMBER": "2.5.4.5",
    "C": "2.5.4.6",
    "L": "2.5.4.7",
    "ST": "2.5.4.8",
    "S": "2.5.4.8",  # as Windows writes it
    "STREET": "2.5.4.9",
    "O": "2.5.4.10",
    "OU": "2.5.4.11",
    "TITLE": "2.5.4.12",
    "GN": "2.5.4.42",
    "GIVENNAME": "2.5.4.42",
    "DNQUALIFIER": "2.5.4.46",
    "ORGANIZATIONIDENTIFIER": "2.5.4.97",
    "DC": "0.9.2342.19200300.100.1.25",
    "UID": "0.9.2342.19200300.100.1.1",
    "EMAILADDRESS": "1.2.840.113549.1.9.1",
    "E": "1.2.840.113549.1.9.1",
}
_OID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")
_SPACES = re.compile(r"[ \t\n\v\f\r]+")
# An escape (RFC 4514, 3), or any character that is not a backslash.
_PIECE = re.compile(r"\\([0-9A-Fa-f]{2})|\\(.)|([^\\])", re.DOTALL)
_MUST_ESCAPE = frozenset('";<>')
_ESCAPABLE = frozenset(' "#+,;<=>\\')


def fold(value: str) -> str:
    """A value as OpenSSL compares it."""
    return _SPACES.sub(" ", value).strip(" ").encode().lower().decode()


def name_key(parts: list[list[tuple[str, str]]]) -> NameKey:
    """A name to compare, from its parts in the certificate's order."""
    return tuple(tuple(sorted((oid, fold(value)) for oid, value in part)) for part in parts)


def parse_name(text: str) -> NameKey:
    """Parse RFC 4514 text. Raises ValueError that says what is wrong with it."""
    parts = [[_pair(each) for each in _split(part, "+")] for part in _split(text, ",")]
    return name_key(parts[::-1])


def _split(text: str, separator: str) -> list[str]:
    """The pieces between separators that are not escaped."""
    found, start, at = [], 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        if text[at] == separator:
            found.append(text[start:at])
            start = at + 1
        at += 1
    return [*found, text[start:]]


def _pair(text: str) -> tuple[str, str]:
    kind, equals, value = text.partition("=")
    kind = kind.strip().removeprefix("OID.")
    if not equals or not kind:
        raise ValueError(f'has the part "{text.strip()}", which is not TYPE=value')
    oid = kind if _OID.fullmatch(kind) else _TYPES.get(kind.upper(), "")
    if not oid:
        raise ValueError(f'has the unknown type "{kind}"; use a dotted OID for a rare one')
    return oid, _unescape(value)


def _unescape(text: str) -> str:
    """The value without its escapes. Spaces around it stay; they are not compared."""
    if text.lstrip(" ").startswith("#"):
        raise ValueError('has a value in hexadecimal ("#…"), which cannot be compared')
    data = bytearray()
    at = 0
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None or (piece[2] and piece[2] not in _ESCAPABLE):
            raise ValueError("has a backslash before a character that needs none")
        if piece[3] and piece[3] in _MUST_ESCAPE:
            raise ValueError(f"has {piece[3]} without a backslash before it")
        data += bytes.fromhex(piece[1]) if piece[1] else (piece[2] or piece[3]).encode()
        at = piece.end()
    try:
        value = data.decode()
    except UnicodeDecodeError:
        raise ValueError("has escaped bytes that are not UTF-8") from None
    if not value.strip() or not value.isprintable():
        raise ValueError("has a value that is empty, or not printable")
    return value

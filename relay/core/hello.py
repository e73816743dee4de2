"""Parses the first bytes of a client: its ClientHello's server name and ALPN offer.

This runs once per connection, on the hot path. Measured with timeit, CPython 3.11: 3.9
µs for the 1,554 bytes of OpenSSL 4 with an X25519MLKEM768 share, 5.0 µs with ALPN, 0.4
µs more from a memoryview.

Theory of operation. The input is everything received so far. A call with more bytes
starts again at the first one. A hello in one record, which is the usual case, is read
in place; a hello spread over several records is joined first. Parts that routing does
not need are skipped by their length, because OpenSSL reads the same bytes again and
checks them.

The parser accepts every hello that OpenSSL accepts, within two limits of the relay:
MAX_HELLO_BYTES (OpenSSL accepts 131,396 bytes) and MAX_RECORDS (OpenSSL has no limit).
`tests/tls/test_hello_beside_openssl.py` compares the two on mutated hellos.

Never: reads a socket, keeps state between calls, raises on what a peer sent.
Next: `relay.core.routes.RouteTable.find`
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from struct import Struct
from typing import Final, TypeAlias

from relay.core.hello_extensions import (
    MAX_NAME_BYTES,
    is_version_list,
    parse_alpn,
    parse_name,
    parse_server_name,
)
from relay.errors import Reason

# The handshake message without its header of 4 bytes: 64 KiB of extensions, 4 KiB
# before.
MAX_HELLO_BYTES: Final = 65_536 + 4_096
MAX_RECORD_BYTES: Final = 16_384
# A hello of 2 KiB in records of one byte each takes 0.6 ms to parse.
MAX_RECORDS: Final = 2_048
MAX_EMPTY_RECORDS: Final = 32  # in a row, as in OpenSSL
# The longest possible hello: the message, and the headers of its records.
MAX_BYTES: Final = 4 + MAX_HELLO_BYTES + 5 * MAX_RECORDS


class Need(Enum):
    """What a parser needs to continue; compare with `is NEED_DATA`."""

    DATA = "data"


NEED_DATA: Final = Need.DATA


@dataclass(slots=True, frozen=True)
class Hello:
    """The parts of a ClientHello that routing and logs need."""

    sni: str
    """The server name as `parse_name` gives it; "" if the client sent none."""
    alpn: tuple[bytes, ...]
    """The protocols offered, in the client's order (RFC 7301, section 3.1)."""
    signatures: bytes = field(default=b"", compare=False)
    """The body of its signature_algorithms extension (RFC 8446, section 4.2.3)."""
    ech: bool = False
    """Whether it has an encrypted_client_hello extension (RFC 9849), real or GREASE."""


@dataclass(slots=True, frozen=True)
class Malformed:
    """Why the bytes are not the start of any valid ClientHello."""

    reason: Reason
    """NOT_TLS, PLAIN_HTTP or MALFORMED_HELLO."""
    detail: str
    alert: int = field(default=0, compare=False)
    """The TLS alert to answer with; 0 if the client would not understand an alert."""


Parsed: TypeAlias = Hello | Malformed | Need

# Alerts of RFC 8446, section 6.2. Each fault gets the alert that OpenSSL sends for it,
# or a fitting one where OpenSSL sends none.
UNEXPECTED_MESSAGE, RECORD_OVERFLOW, ILLEGAL_PARAMETER, DECODE_ERROR = 10, 22, 47, 50
PROTOCOL_VERSION, UNRECOGNIZED_NAME = 70, 112

# The first bytes of versions 1 and 2; see `relay.core.proxy_protocol`.
PROXY_HEADER: Final = (
    "starts with a PROXY header; set accept_proxy in the listener, or stop the sender"
)

_HANDSHAKE = 22
_CONTENT_TYPES = range(20, 25)
_CLIENT_HELLO = 1
_SERVER_NAME, _SIGNATURES, _ALPN, _SUPPORTED_VERSIONS, _ECH = 0, 13, 16, 43, 0xFE0D
_READ = frozenset((_SERVER_NAME, _SIGNATURES, _ALPN, _SUPPORTED_VERSIONS))
_HTTP_METHODS = (
    *(b"GET ", b"POST", b"HEAD", b"PUT ", b"CONN"),
    *(b"OPTI", b"PRI ", b"DELE", b"PATC", b"TRAC"),
)

_extension = Struct(">HH").unpack_from
_from_bytes = int.from_bytes


def parse_hello(data: bytes | memoryview) -> Parsed:
    """Everything a client has sent so far, as a Hello or as Malformed.

    NEED_DATA if the bytes are the start of a valid hello. Bytes after the hello are
    ignored. Records: RFC 8446, section 5.1; the message: section 4.1.2.
    """
    size = len(data)
    # The common case, tested at once: the whole message in one complete record.
    if size > 9 and data[0] == _HANDSHAKE and data[1] == 3 and data[5] == _CLIENT_HELLO:
        record = _from_bytes(data[3:5], "big")
        end = 9 + _from_bytes(data[6:9], "big")
        if end <= record + 5 <= size and record <= MAX_RECORD_BYTES and end <= 9 + MAX_HELLO_BYTES:
            return _parse_message(data, 9, end)
    return _parse_records(data, size)


def _malformed(detail: str, alert: int = DECODE_ERROR) -> Malformed:
    return Malformed(Reason.MALFORMED_HELLO, detail, alert)


def _parse_records(data: bytes | memoryview, size: int) -> Parsed:
    """The slow path: refuse as early as possible, or join the records' fragments."""
    message = bytearray()
    at = empty = 0
    for _ in range(MAX_RECORDS):
        if refusal := _wrong_record(data, at, size):
            return refusal
        if size < at + 5:
            return NEED_DATA
        length = _from_bytes(data[at + 3 : at + 5], "big")
        if length > MAX_RECORD_BYTES:
            return _malformed(f"a record of {length} bytes", RECORD_OVERFLOW)
        empty = 0 if length else empty + 1
        if empty > MAX_EMPTY_RECORDS:
            return _malformed(
                f"more than {MAX_EMPTY_RECORDS} empty records in a row", UNEXPECTED_MESSAGE
            )
        message += data[at + 5 : at + 5 + length]
        if message and message[0] != _CLIENT_HELLO:
            return _malformed(
                f"the first handshake message is of type {message[0]}, not a ClientHello",
                UNEXPECTED_MESSAGE,
            )
        if len(message) >= 4:
            end = 4 + _from_bytes(message[1:4], "big")
            if end > 4 + MAX_HELLO_BYTES:
                return _malformed(f"a hello of {end - 4} bytes", ILLEGAL_PARAMETER)
            if len(message) >= end:
                return _parse_message(bytes(message), 4, end)
        at += 5 + length
        if at > size:
            return NEED_DATA
    return _malformed(f"a hello in more than {MAX_RECORDS} records", UNEXPECTED_MESSAGE)


def _wrong_record(data: bytes | memoryview, at: int, size: int) -> Malformed | None:
    """What is wrong with the record at `at`, from the bytes that have arrived."""
    if size > at and data[at] != _HANDSHAKE:
        if at:
            return _malformed(
                f"a record of type {data[at]} in the middle of the hello", UNEXPECTED_MESSAGE
            )
        return _not_tls(bytes(data[:8]))
    if size > at + 1 and data[at + 1] != 3:
        if at:
            return _malformed(
                f"a record of version {data[at + 1]} in the middle of the hello", PROTOCOL_VERSION
            )
        return Malformed(
            Reason.NOT_TLS, f"starts like a TLS record, but of version {data[1]}", PROTOCOL_VERSION
        )
    return None


def _not_tls(start: bytes) -> Malformed:
    """Name the protocol, as far as the first bytes tell it."""
    if start.startswith((b"PROXY", b"\r\n\r\n\x00")):
        return Malformed(Reason.NOT_TLS, PROXY_HEADER)
    if any(start[:4] == method[: len(start)] for method in _HTTP_METHODS):
        return Malformed(Reason.PLAIN_HTTP, f"starts with {start!r}")
    if start[0] & 0x80 and start[2:3] == b"\x01":
        return Malformed(Reason.NOT_TLS, "an SSLv2 hello", UNEXPECTED_MESSAGE)
    is_record = start[0] in _CONTENT_TYPES or start[1:2] == b"\x03"
    return Malformed(
        Reason.NOT_TLS, f"starts with {start!r}", UNEXPECTED_MESSAGE if is_record else 0
    )


def _parse_message(data: bytes | memoryview, at: int, end: int) -> Hello | Malformed:
    """The ClientHello message in data[at:end] (RFC 8446, section 4.1.2)."""
    try:
        version = _from_bytes(data[at : at + 2], "big")
        at += 34  # version, random
        if data[at] > 32:
            return _malformed(f"a session id of {data[at]} bytes")
        at += 1 + data[at]
        at += 2 + _from_bytes(data[at : at + 2], "big")  # cipher suites
        at += 1 + data[at]  # compression methods
    except IndexError:
        return _malformed("the hello ends before its extensions")
    if version < 0x0300:
        return _malformed(f"a hello of version {version:#06x}", PROTOCOL_VERSION)
    if at == end:
        return Hello("", ())  # TLS 1.2 without extensions (RFC 5246, section 7.4.1.2)
    if at + 2 > end or at + 2 + _from_bytes(data[at : at + 2], "big") != end:
        return _malformed("the extensions do not end where the hello ends")
    return _parse_extensions(data, at + 2, end)


def _parse_extensions(data: bytes | memoryview, at: int, end: int) -> Hello | Malformed:
    sni = ""
    alpn: tuple[bytes, ...] = ()
    signatures = b""
    seen = 0
    ech = False
    while at + 4 <= end:
        kind, length = _extension(data, at)
        at += 4
        if kind == _ECH:
            ech = True
        elif kind in _READ:
            if seen >> kind & 1:
                return _malformed(f"two extensions of type {kind}", ILLEGAL_PARAMETER)
            seen |= 1 << kind
            body = bytes(data[at : min(at + length, end)])
            if kind == _SERVER_NAME:
                raw = parse_server_name(body)
                if raw is None:
                    return _malformed(
                        f"a server_name extension that is not one host name: {body[5:69]!r}"
                    )
                if len(raw) > MAX_NAME_BYTES or 0 in raw:
                    detail = f"a server name of {len(raw)} bytes, which is not one host name"
                    return _malformed(f"{detail}: {raw[:64]!r}", UNRECOGNIZED_NAME)
                sni = parse_name(raw)
            elif kind == _ALPN:
                offer = parse_alpn(body)
                if offer is None:
                    return _malformed("an ALPN extension that is not a list of names")
                alpn = offer
            elif kind == _SIGNATURES:
                signatures = body
            elif not is_version_list(body):
                return _malformed(
                    "a supported_versions extension that is not a list of versions",
                    PROTOCOL_VERSION,
                )
        at += length
    if at != end:
        return _malformed("the last extension does not end where the hello ends")
    return Hello(sni, alpn, signatures, ech)

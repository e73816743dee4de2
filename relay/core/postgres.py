"""How a PostgreSQL client asks for TLS, and how a server answers (protocol 3, 55.2.10).

Before TLS a client sends SSLRequest, 8 bytes, and waits for one byte: "S", and TLS
follows; "N", and it does not; or an ErrorResponse. It may ask for GSSAPI encryption
first. libpq before 17, JDBC, ODBC and most other drivers do so. Since PostgreSQL 17 a
client may begin with TLS at once.

Bytes that follow a request before its answer, or an answer before TLS, were perhaps
injected by an attacker on the way (CVE-2021-23214, CVE-2021-23222). They are refused.

Never: reads a socket; raises on what a peer sent.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from relay.core.hello import NEED_DATA, Need
from relay.core.untrusted import clip_bytes

PROTOCOL: Final = "postgresql"
"""Its name in ALPN; a server is not reached without it if TLS begins at once."""
REQUEST_BYTES: Final = 8
SSL_REQUEST: Final = bytes.fromhex("0000000804d2162f")
YES, NO = b"S", b"N"
ERROR: Final = b"E"

_TLS_CODE, _GSSAPI_CODE, _CANCEL_CODE = 0x04D2162F, 0x04D21630, 0x04D2162E
_MAX_PACKET_BYTES = 10_000  # of a start-up packet, as in the server
_MAX_SHOWN = 200
_INVALID_AUTHORIZATION = b"28000"

_from_bytes = int.from_bytes


class Request(Enum):
    """What a client sends before TLS, or in place of it."""

    TLS = "SSLRequest"
    GSSAPI = "GSSENCRequest"
    CANCEL = "CancelRequest"
    START = "StartupMessage"


def parse_request(start: bytes) -> Request | Need | None:
    """The request that these first bytes are; None if they are not PostgreSQL's."""
    size = _from_bytes(start[:4].ljust(4, b"\0"), "big")
    if start[:1] != b"\0" or size > _MAX_PACKET_BYTES or (len(start) >= 4 and size < REQUEST_BYTES):
        return None
    if len(start) < REQUEST_BYTES:
        return NEED_DATA
    code = _from_bytes(start[4:8], "big")
    if size == REQUEST_BYTES:
        return {_TLS_CODE: Request.TLS, _GSSAPI_CODE: Request.GSSAPI}.get(code)
    if code == _CANCEL_CODE:
        return Request.CANCEL
    return Request.START if code >> 16 in (2, 3) else None


def error_response(message: str) -> bytes:
    """A fatal ErrorResponse, which clients print (protocol 3, 55.7 and 55.8)."""
    fields = (b"SFATAL", b"VFATAL", b"C" + _INVALID_AUTHORIZATION, b"M" + message.encode())
    body = b"".join(field + b"\0" for field in fields) + b"\0"
    return ERROR + (4 + len(body)).to_bytes(4, "big") + body


def describe_error(data: bytes) -> str:
    """The message of an ErrorResponse without its first byte, as far as it has come.

    Nobody has verified who sent it: it is one printable line.
    """
    for field in data[4:].split(b"\0"):
        if field[:1] == b"M":
            return clip_bytes(field[1:], _MAX_SHOWN)
    return clip_bytes(data, _MAX_SHOWN)

"""One session as the access log sees it.

Never: decides how a line looks (that is `logs.json_format` and `logs.apache_format`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

END_OF_TIME_AT = 253_402_300_800.0  # the year 10000, beyond datetime's range


class Record(NamedTuple):
    """The fields of a line, in their order.

    In a session that ended early, later strings are empty and handshake times None.

    `time` is when the client connected, in Unix seconds. `client` is address:port, IPv6
    in brackets. Behind a balancer it is that of the PROXY header, and `peer` the
    balancer's; `proxy` has the header's other values. `subject` and `issuer` are RFC
    4514 strings, `serial` is hexadecimal, `not_after` Unix seconds (0 without a
    certificate). Byte counts are of plaintext: `bytes_in` from the client, `bytes_out`
    to the client.
    """

    time: float = 0.0
    session: str = ""
    listener: str = ""
    route: str = ""
    client: str = ""
    peer: str = ""
    proxy: tuple[tuple[str, str], ...] = ()
    sni: str = ""
    alpn: str = ""
    tls_version: str = ""
    cipher: str = ""
    group: str = ""
    resumed: bool = False
    subject: str = ""
    issuer: str = ""
    serial: str = ""
    not_after: float = 0.0
    pool: str = ""
    backend: str = ""
    why: str = ""
    outbound_tls_version: str = ""
    outbound_cipher: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    duration_s: float = 0.0
    inbound_handshake_s: float | None = None
    outbound_handshake_s: float | None = None
    reason: str = ""
    side: str = ""
    remedy: str = ""
    detail: str = ""
    ech: bool = False


FIELDS = Record._fields
Render = Callable[[Record], bytes]

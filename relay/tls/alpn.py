"""Selects the application protocol for a client (ALPN, RFC 7301).

Never: selects a protocol that the route does not name.
"""

from __future__ import annotations

from typing import Any

from relay.tls.raw import EXTENSION_OK, EXTENSION_REFUSED, ffi


def selector(protocols: tuple[bytes, ...]) -> Any:
    """A raw callback that selects the first of these protocols that the client offers.

    It refuses the handshake if there is none (section 3.2).
    """

    def select(
        _ssl: Any, out: Any, out_length: Any, offered: Any, offered_length: int, _arg: Any
    ) -> int:
        data = bytes(ffi.buffer(offered, offered_length))
        positions: dict[bytes, int] = {}
        at = 0
        while at < len(data):
            length = data[at]
            positions.setdefault(data[at + 1 : at + 1 + length], at + 1)
            at += 1 + length
        for protocol in protocols:
            position = positions.get(protocol)
            if position is not None:
                # Points into the client's list, which outlives the call.
                out[0] = offered + position
                out_length[0] = len(protocol)
                return EXTENSION_OK
        return EXTENSION_REFUSED

    return ffi.callback(
        "int(SSL *, unsigned char **, unsigned char *, unsigned char *, unsigned int, void *)",
        select,
        error=EXTENSION_REFUSED,
    )

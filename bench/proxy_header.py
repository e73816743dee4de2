"""The PROXY v2 header in front of each connection to the backend.

Never: looks into a header; it only counts that one came.
"""

from __future__ import annotations

import socket

from bench import tls

_START_BYTES = 16  # before the addresses
_START = b"\r\n\r\n\0\r\nQUIT\n\x21"
_RELAY = '[pool.backends]\nsend_proxy = "v2"\n'
_HAPROXY = (
    " send-proxy-v2 send-proxy-v2-ssl-cn"
    " proxy-v2-options ssl-cipher,cert-key,cert-sig,authority,unique-id"
)


def with_proxy(template: str, gateway: str) -> str:
    """A gateway's configuration, with a header of everything that it can say."""
    if gateway == "relay":
        return template.replace("[pool.backends]\n", _RELAY)
    template = template.replace("mode tcp\n", "mode tcp\n    unique-id-format %pid-%rt\n")
    return template.replace(" sni str(@BACKEND_NAME@)", f" sni str(@BACKEND_NAME@){_HAPROXY}")


def consume(sock: socket.socket) -> bool:
    """Read the header and nothing else. False if it is not there yet."""
    start = sock.recv(_START_BYTES, socket.MSG_PEEK)
    if not start:
        raise tls.AbandonedError
    if not start.startswith(_START[: len(start)]):
        raise tls.TlsError("no PROXY v2 header")
    size = _START_BYTES + int.from_bytes(start[14:16], "big")
    if len(start) < _START_BYTES or len(sock.recv(size, socket.MSG_PEEK)) < size:
        return False
    sock.recv(size)
    return True

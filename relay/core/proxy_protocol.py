"""Parses a PROXY header: what a balancer says about the client that it passes on.

Theory of operation. The input is everything received so far, and a call with more bytes
starts again at the first one: headers are short. A wrong byte is reported as soon as it
is there, so a sender that waits for an answer learns it before the timeout.

Never: reads a socket, reads beyond the header, raises on what a peer sent.
Next: `relay.core.proxy_v2.parse_v2`
"""

from __future__ import annotations

from relay.core.proxy_header import MalformedHeader, ParsedHeader
from relay.core.proxy_v1 import MAX_V1_BYTES, V1_PREFIX, parse_v1
from relay.core.proxy_v2 import MAX_V2_BYTES, V2_SIGNATURE, parse_v2

_TLS_HANDSHAKE = 22
MAX_HEADER_BYTES = max(MAX_V1_BYTES, MAX_V2_BYTES)


def parse_header(data: bytes | memoryview) -> ParsedHeader:
    """The header at the start of `data`; NEED_DATA if it is not complete."""
    start = bytes(data[: len(V2_SIGNATURE)])
    if start == V2_SIGNATURE[: len(start)]:
        return parse_v2(bytes(data[:MAX_V2_BYTES]))
    if start.startswith(V1_PREFIX[: len(start)]):
        return parse_v1(bytes(data[:MAX_V1_BYTES]))
    what = "a TLS hello" if start[0] == _TLS_HANDSHAKE else repr(start[:8])
    return MalformedHeader(f"starts with {what}, not with a PROXY header", missing=True)

"""The bodies of the ClientHello extensions that are needed for routing.

A server name that could be read in two ways (several names, a NUL) is refused, so that
the route is always chosen by the name that OpenSSL reads (RFC 6066, section 3).

Never: raises on what a client sent.
"""

from __future__ import annotations

from functools import lru_cache

from relay.core.untrusted import clip_bytes

MAX_NAME_BYTES = 255  # OpenSSL's TLSEXT_MAXLEN_host_name; it refuses longer names

# Host names have no underscore, but many names in use do. Any other character is an
# attack or a mistake.
_NAME_BYTES = b"abcdefghijklmnopqrstuvwxyz0123456789-._"
_MAX_ODD_CHARACTERS = 128
_DOT = ord(".")

_from_bytes = int.from_bytes


@lru_cache(1024)
def parse_name(raw: bytes) -> str:
    """A server name as it was sent, in the form for routing, comparing and logs.

    A host name becomes lower case without a trailing dot (clients that were given an
    absolute name send the dot). Anything else (an IPv6 literal, `host:port`, UTF-8)
    becomes one printable line with a character that no host name has, or with an empty
    label, so that no pattern matches it.
    """
    name = raw.lower()
    if name[-1:] == b".":
        name = name[:-1]
    if not name or name.translate(None, _NAME_BYTES) or name[0] == _DOT or b".." in raw:
        return clip_bytes(raw, _MAX_ODD_CHARACTERS)
    return name.decode("ascii")


def parse_server_name(body: bytes) -> bytes | None:
    """The name in a server_name extension; None if it is not exactly one host name.

    OpenSSL does not accept a list of several names either (RFC 6066, section 3).
    """
    size = len(body)
    if (
        size < 5
        or body[2] != 0
        or _from_bytes(body[:2], "big") != size - 2
        or _from_bytes(body[3:5], "big") != size - 5
    ):
        return None
    return body[5:]


def parse_alpn(body: bytes) -> tuple[bytes, ...] | None:
    """The names in an ALPN extension; None if malformed (RFC 7301, section 3.1)."""
    size = len(body)
    if size < 4 or _from_bytes(body[:2], "big") != size - 2:
        return None
    names = []
    at = 2
    while at < size:
        start = at + 1
        at = start + body[at]
        if at == start or at > size:
            return None
        names.append(body[start:at])
    return tuple(names)


def is_version_list(body: bytes) -> bool:
    """Whether a supported_versions extension is well-formed (RFC 8446, 4.2.1)."""
    size = len(body)
    return size >= 3 and size % 2 == 1 and body[0] == size - 1

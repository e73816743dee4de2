"""The URLs of revocation lists: which of them the relay fetches.

Never: resolves a name or opens a connection.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from relay.config.address import host_name_fault, is_ip

_PRINTABLE = re.compile(r"[!-~]+")
MOST_CHARACTERS = 2048
_HTTP_PORT = 80


class CrlUrl(NamedTuple):
    """The parts of a URL that a request needs."""

    host: str  # in lower case, an IPv6 address without brackets
    port: int
    target: str  # path and query


def parse_crl_url(url: str) -> CrlUrl:
    """Split a URL.

    Raises ValueError, whose text says what is wrong, for one that is not fetched.
    """
    if len(url) > MOST_CHARACTERS:
        raise ValueError(f"has more than {MOST_CHARACTERS} characters")
    if not _PRINTABLE.fullmatch(url):
        raise ValueError("has spaces, line breaks or characters beyond ASCII")
    scheme = url.partition(":")[0].lower()
    if scheme == "https":
        raise ValueError(
            "is https, and lists are fetched by http only: a list is signed, so TLS protects"
            " nothing, and it would need a CA of its own"
        )
    if scheme != "http":
        raise ValueError("does not start with http://")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if "@" in parts.netloc:
        raise ValueError("has a user name, which would be shown in the log")
    if parts.fragment:
        raise ValueError('has a part after "#", which is never sent')
    if not is_ip(host) and (fault := host_name_fault(host)):
        raise ValueError(f"has a host that {fault}")
    if port == 0:
        raise ValueError("has the port 0")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return CrlUrl(host.lower(), port or _HTTP_PORT, target)

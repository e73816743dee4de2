"""The server name (SNI) to send to a backend that is to get the client's.

Never: sends a name that no host can have.
"""

from __future__ import annotations

from functools import lru_cache

from relay.config.address import host_name_fault


@lru_cache(1024)
def name_to_send(sni: str) -> bytes:
    """A client's server name, zero-terminated; b"" to send none.

    An IP address is never sent (RFC 6066, section 3), and neither is a name that is
    not a host name.
    """
    return b"" if host_name_fault(sni) else sni.encode("ascii") + b"\0"

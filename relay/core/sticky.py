"""The hash key that keeps a client on its backend: from its address, key or cookie.

Never: chooses a backend (see `core.balance`).
Next: `relay.core.rendezvous.Rendezvous`
"""

from __future__ import annotations

from hashlib import blake2b
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TypeAlias

Prefixes: TypeAlias = tuple[int, int]  # bits of IPv4 and IPv6 addresses that count
# What is one client where limits and canaries count clients: an address, or a /64.
CLIENT_PREFIXES: Prefixes = (32, 64)
_MAPPED = "::ffff:"


def source_key(address: str, prefix_v4: int = 32, prefix_v6: int = 128) -> bytes:
    """The key of a client's address: 4 bytes for IPv4, 16 bytes for IPv6.

    It is the same for every spelling of the address. An IPv4-mapped IPv6 address (RFC
    4291, section 2.5.5.2) has the key of its IPv4 address, so that a dual-stack socket
    makes no difference. Only the first `prefix_v4` or `prefix_v6` bits count: clients
    of one network then share a backend, and a client that changes its address inside
    the network (RFC 8981) keeps it. The zone of an IPv6 address does not count. A text
    that is not an address is its own key.
    """
    try:
        if ":" not in address:
            return _masked(IPv4Address(address).packed, prefix_v4)
        # The spelling that the kernel uses, without parsing it as IPv6.
        if address.startswith(_MAPPED) and "." in address:
            return _masked(IPv4Address(address[len(_MAPPED) :]).packed, prefix_v4)
        full = IPv6Address(address.partition("%")[0])
    except AddressValueError:
        return address.encode("utf-8", "surrogateescape")
    mapped = full.ipv4_mapped
    return _masked(full.packed, prefix_v6) if mapped is None else _masked(mapped.packed, prefix_v4)


def identity_key(
    spki_sha256: bytes, address: str, prefix_v4: int = 32, prefix_v6: int = 128
) -> bytes:
    """The hash key of a client's public key, which is given as a hash.

    A renewed certificate with the same public key keeps its backend. Without a public
    key (b"") the client's address decides.
    """
    return spki_sha256 or source_key(address, prefix_v4, prefix_v6)


def cookie_key(value: bytes) -> bytes:
    """The key of a cookie's value: 16 bytes, however long the value is."""
    return blake2b(value, digest_size=16).digest()


def _masked(packed: bytes, prefix: int) -> bytes:
    size = len(packed)
    host = 8 * size - prefix
    return (
        packed
        if host <= 0
        else (int.from_bytes(packed, "big") >> host << host).to_bytes(size, "big")
    )

"""From who a client is to the key that keeps it on its backend.

Never: chooses a backend (that is `core.balance`).
Next: `relay.core.rendezvous.Rendezvous`
"""

from __future__ import annotations

from hashlib import blake2b
from ipaddress import AddressValueError, IPv4Address, IPv6Address

_MAPPED = "::ffff:"


def source_key(address: str, prefix_v4: int = 32, prefix_v6: int = 128) -> bytes:
    """The key of a client's address: 4 bytes for IPv4, 16 for IPv6, the same for every spelling of the address.

    An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) has the key of its IPv4 address, so a client is the same one on a
    dual-stack socket. Only the first `prefix_v4` or `prefix_v6` bits count, the rest are zero in the key: clients of one network
    then have one backend, and so has a client that changes its address there (RFC 8981). The zone of an IPv6 address does not
    count. What is no address is its own key.
    """
    try:
        if ":" not in address:
            return _masked(IPv4Address(address).packed, prefix_v4)
        if (
            address.startswith(_MAPPED) and "." in address
        ):  # how the kernel's are spelt: the cheap way
            return _masked(IPv4Address(address[len(_MAPPED) :]).packed, prefix_v4)
        full = IPv6Address(address.partition("%")[0])
    except AddressValueError:
        return address.encode("utf-8", "surrogateescape")
    mapped = full.ipv4_mapped
    return _masked(full.packed, prefix_v6) if mapped is None else _masked(mapped.packed, prefix_v4)


def identity_key(
    spki_sha256: bytes, address: str, prefix_v4: int = 32, prefix_v6: int = 128
) -> bytes:
    """The key of a client's public key, given as its hash: it outlives renewals of the certificate that keep the key.

    Without one (b"": the client's TLS ends at the backend) the address is who the client is.
    """
    return spki_sha256 or source_key(address, prefix_v4, prefix_v6)


def cookie_key(value: bytes) -> bytes:
    """The key of a cookie's value: 16 bytes, however long the value is that a client has made up."""
    return blake2b(value, digest_size=16).digest()


def _masked(packed: bytes, prefix: int) -> bytes:
    size = len(packed)
    host = 8 * size - prefix
    return (
        packed
        if host <= 0
        else (int.from_bytes(packed, "big") >> host << host).to_bytes(size, "big")
    )

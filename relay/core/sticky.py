"""From who a client is to the key that keeps it on its backend.

Never: chooses a backend (that is `core.balance`).
Next: `relay.core.balance.Rendezvous`
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv6Address

_MAPPED = "::ffff:"


def source_key(address: str) -> bytes:
    """The key of a client's address: 4 bytes for IPv4, 16 for IPv6, the same for every spelling of the address.

    An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) has the key of its IPv4 address, so a client is the same one on a
    dual-stack socket. The whole IPv6 address counts, without its zone. What is no address is its own key.
    """
    try:
        if ":" not in address:
            return IPv4Address(address).packed
        if address.startswith(_MAPPED) and "." in address:  # how the kernel's are spelt: the cheap way
            return IPv4Address(address[len(_MAPPED) :]).packed
        full = IPv6Address(address.partition("%")[0])
    except AddressValueError:
        return address.encode("utf-8", "surrogateescape")
    mapped = full.ipv4_mapped
    return full.packed if mapped is None else mapped.packed

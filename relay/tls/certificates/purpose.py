"""Finds the extension that forbids the use of a peer's certificate.

OpenSSL has one error for all of them ("unsuitable certificate purpose"), but the
operator needs to know which extension to change when reissuing the certificate.

For a route with accept_server_certificates, OpenSSL does not look at the purpose, and
`tls_use_of` decides: a certificate must be for TLS clients or for TLS servers.

Never: raises because of what a peer sent; takes what it cannot read for permission.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from relay.core.untrusted import clip
from relay.errors import Side
from relay.tls.certificates.der import DerError, Fields, read_certificate
from relay.tls.certificates.extension_values import (
    BASIC_CONSTRAINTS,
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    NETSCAPE_TYPE,
    is_ca_in,
    usages_in,
    uses_in,
)
from relay.tls.certificates.names import attributes_of, render

# Microsoft's and Netscape's "server gated crypto" count as serverAuth.
_SERVER_USES = frozenset(("serverAuth", "1.3.6.1.4.1.311.10.3.3", "2.16.840.1.113730.4.1"))
_CLIENT_USES = frozenset(("clientAuth",))
_EITHER_USE = _CLIENT_USES | _SERVER_USES
_MAX_USES = 8
# The bits of nsCertType, and of keyUsage, that OpenSSL accepts (v3_purp.c).
_NETSCAPE_LEAF, _NETSCAPE_CA = 0xC0, 0x04
_SIGNING_USAGES = frozenset(("digitalSignature", "keyAgreement"))
_PUBLIC_CAS = (
    ": public CAs have issued certificates for servers only since 2026; use a CA of your own"
    " for clients, or set accept_server_certificates = true, and name the clients in allow"
)
_OF_PURPOSE = (EXTENDED_KEY_USAGE, KEY_USAGE, NETSCAPE_TYPE)
NAME_CHARACTERS = 128  # of one name in a message


class TlsUse(NamedTuple):
    """What a certificate may be used for in TLS.

    The faults say why it may be neither a client's nor a server's: as a leaf, and as
    the certificate of an issuer.
    """

    for_clients: bool = True
    leaf_fault: str = ""
    issuer_fault: str = ""


ANY_USE = TlsUse()


def tls_use_of(fields: Fields) -> TlsUse:
    """Read it from the fields of a certificate that OpenSSL has verified."""
    if fields.extensions is None:
        fault = "its extensions cannot be read"
        return TlsUse(for_clients=True, leaf_fault=fault, issuer_fault=fault)
    values = {each.oid: each.value for each in fields.extensions}
    return _tls_use(*map(values.get, _OF_PURPOSE))


@lru_cache(maxsize=256)  # the same few values in all certificates of a CA
def _tls_use(uses: bytes | None, usage: bytes | None, netscape: bytes | None) -> TlsUse:
    try:
        for_clients = uses is None or "clientAuth" in uses_in(uses)
        either = _either_fault(uses)
        return TlsUse(
            for_clients,
            either or _usage_fault(usage) or _netscape_bits_fault(netscape, _NETSCAPE_LEAF),
            either or _netscape_bits_fault(netscape, _NETSCAPE_CA),
        )
    except DerError:
        fault = "its usage extensions cannot be read"
        return TlsUse(for_clients=True, leaf_fault=fault, issuer_fault=fault)


def _either_fault(value: bytes | None) -> str:
    if value is None or not _EITHER_USE.isdisjoint(uses := uses_in(value)):
        return ""
    return f"its extendedKeyUsage ({_shown(uses)}) lacks clientAuth and serverAuth"


def _usage_fault(value: bytes | None) -> str:
    if value is None or not _SIGNING_USAGES.isdisjoint(found := usages_in(value)):
        return ""
    return f"its keyUsage ({', '.join(found) or 'empty'}) lacks digitalSignature"


def _netscape_bits_fault(value: bytes | None, accepted: int) -> str:
    if value is None or (len(value) > 3 and value[3] & accepted):
        return ""
    return "its nsCertType forbids it; reissue it without this extension"


def subject_in(der: bytes) -> str:
    """The subject of a DER certificate, or "unreadable", for a message."""
    try:
        return clip(render(attributes_of(read_certificate(der).subject)), NAME_CHARACTERS)
    except DerError:
        return "unreadable"


def forbidding_extension(der: bytes, side: Side, *, issuer: bool) -> str:
    """Why the peer of this side may not use the certificate; "" if that is unknown.

    With `issuer`, the certificate is that of the peer's issuer.
    """
    try:
        fields = read_certificate(der)
        if fields.extensions is None:
            return ""
        return _issuer_fault(fields, side) if issuer else _leaf_fault(fields, side)
    except DerError:
        return ""


def _leaf_fault(fields: Fields, side: Side) -> str:
    fault = _extended_fault(fields, side)
    if fault:
        return fault
    usage = _value(fields, KEY_USAGE)
    if usage is not None:
        # OpenSSL also accepts keyAgreement, and keyEncipherment for a server. But no
        # current cipher suite can use a certificate without digitalSignature.
        found = usages_in(usage)
        if "digitalSignature" not in found:
            return f"its keyUsage ({', '.join(found) or 'empty'}) lacks digitalSignature"
    return _netscape_fault(fields)


def _issuer_fault(fields: Fields, side: Side) -> str:
    basic = _value(fields, BASIC_CONSTRAINTS)
    if basic is None:
        return "it is not a CA: it has no basicConstraints"
    if not is_ca_in(basic):
        return "it is not a CA: its basicConstraints say CA:FALSE"
    usage = _value(fields, KEY_USAGE)
    if usage is not None:
        found = usages_in(usage)
        if "keyCertSign" not in found:
            return f"its keyUsage ({', '.join(found) or 'empty'}) lacks keyCertSign"
    return _extended_fault(fields, side) or _netscape_fault(fields)


def _extended_fault(fields: Fields, side: Side) -> str:
    value = _value(fields, EXTENDED_KEY_USAGE)
    if value is None:
        return ""
    uses = uses_in(value)
    needed = _CLIENT_USES if side is Side.INBOUND else _SERVER_USES
    if not needed.isdisjoint(uses):
        return ""
    if side is Side.OUTBOUND:
        return f"its extendedKeyUsage ({_shown(uses)}) lacks serverAuth"
    hint = _PUBLIC_CAS if "serverAuth" in uses else ""
    return f"its extendedKeyUsage ({_shown(uses)}) lacks clientAuth{hint}"


def _shown(uses: list[str]) -> str:
    return ", ".join([*uses[:_MAX_USES], *(["…"] if len(uses) > _MAX_USES else [])])


def _netscape_fault(fields: Fields) -> str:
    present = _value(fields, NETSCAPE_TYPE) is not None
    return "its nsCertType forbids it; reissue it without this extension" if present else ""


def _value(fields: Fields, oid: bytes) -> bytes | None:
    return next((each.value for each in fields.extensions or () if each.oid == oid), None)

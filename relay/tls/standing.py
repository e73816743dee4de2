"""Whether a peer that was admitted earlier would be admitted by today's trust.

OpenSSL verified the peer's chain once, under the CAs of that time. These functions
compare what it found with other CAs, rules and dates. They need no certificate: a
session remembers the identities of its chain.

A resumed session has only the leaf. Its issuer is found by its name and key identifier.
Without an identifier, all CAs of that name may have issued it: if some of these are
gone and some are left, it cannot be told, and the peer does not pass.

Never: verifies a signature, or admits a peer (see `identity.admit`).
"""

from __future__ import annotations

from enum import Enum

from relay.tls.identity import Identity
from relay.tls.trust import CaTrust
from relay.tls.verification import Chain


class Standing(Enum):
    """What today's CAs say about a peer of earlier."""

    TRUSTED = "trusted"
    GONE = "gone"
    UNKNOWN = "unknown"


def has_lost_none(then: CaTrust, now: CaTrust) -> bool:
    """Whether every key that was trusted then is trusted now."""
    return then is now or all(_ids(then, name) <= _ids(now, name) for name in then.keys)


def _ids(cas: CaTrust, name: bytes) -> set[bytes]:
    return {key.key_id for key in cas.keys.get(name, ())}


def standing(who: Identity, chain: Chain, then: CaTrust, now: CaTrust) -> Standing:
    """Whether the CAs of now lead to this peer, which the CAs of then verified."""
    if has_lost_none(then, now):
        return Standing.TRUSTED
    if chain:
        return Standing.TRUSTED if _is_in(chain[-1], now) else Standing.GONE
    if _is_in(who, now):
        return Standing.TRUSTED  # its own certificate is in the file
    issuer = who.issuer_der, who.for_lists.issuer_key_id
    before, left = set(then.issuers_of(*issuer)), set(now.issuers_of(*issuer))
    if not before:  # in TLS 1.2 a client below an intermediate of its own may resume
        return Standing.UNKNOWN
    if before <= left:
        return Standing.TRUSTED
    return Standing.UNKNOWN if before & left else Standing.GONE


def _is_in(who: Identity, cas: CaTrust) -> bool:
    return who.spki_sha256 in _ids(cas, who.for_lists.subject)


def valid_until(who: Identity, chain: Chain, cas: CaTrust) -> float:
    """Until when the peer and every certificate above it are valid, Unix time.

    A CA that was renewed with the same name is valid as long as the new certificate.
    """
    until_at = min(who.not_after_at, cas.valid_until.get(who.issuer_der, who.not_after_at))
    for above in chain:
        limit_at = cas.valid_until.get(above.for_lists.subject, above.not_after_at)
        until_at = min(until_at, limit_at)
    return until_at

"""Finds the CAs of a file that are revoked themselves.

A peer of such a CA is refused in a full handshake, which shows the whole chain. These
CAs also leave the trust generation: a ticket shows only the leaf.

Never: changes a store of OpenSSL.
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.tls.certificates.certificate import Certificate
from relay.tls.revocation.crl import key_id
from relay.tls.revocation.revoked_set import Entry, RevokedSet


def revoked_cas(
    certificates: Iterable[Certificate], revoked: RevokedSet
) -> dict[Certificate, Entry | None]:
    """The CAs that no longer count; None for one below a CA that is revoked."""
    every = tuple(dict.fromkeys(certificates))
    by_name: dict[object, list[Certificate]] = {}
    for each in every:
        by_name.setdefault(each.subject, []).append(each)
    found: dict[Certificate, Entry | None] = {}
    for each in every:
        for issuer in by_name.get(each.issuer, ()):
            entry = revoked.find(key_id(issuer.spki), each.serial)
            if entry is not None:
                found[each] = entry
    if found:
        _add_below(every, by_name, found)
    return found


def _add_below(
    every: tuple[Certificate, ...],
    by_name: dict[object, list[Certificate]],
    found: dict[Certificate, Entry | None],
) -> None:
    """Add the CAs whose every issuer in the file is revoked."""
    more = True
    while more:
        more = False
        for each in every:
            issuers = [one for one in by_name.get(each.issuer, ()) if one is not each]
            # A root needs no issuer, and a namesake of it may be revoked.
            below = each.issuer != each.subject and issuers
            if each not in found and below and all(one in found for one in issuers):
                found[each] = None
                more = True

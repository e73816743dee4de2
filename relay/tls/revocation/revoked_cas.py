"""Finds the CAs of a file that are revoked themselves.

A peer of such a CA is refused in a full handshake, which shows the whole chain. These
CAs also leave the trust generation: a ticket shows only the leaf.

Never: changes a store of OpenSSL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.openssl import issued_by
from relay.tls.revocation.crl import key_id
from relay.tls.revocation.revoked_set import Entry, RevokedSet

Certificates: TypeAlias = Sequence[Certificate]


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
            # A namesake may have issued another certificate with this number.
            if entry is not None and issuer in _signers(each, by_name):
                found[each] = entry
    if found:
        _add_below(every, by_name, found)
    return found


def _signers(certificate: Certificate, by_name: dict[object, list[Certificate]]) -> Certificates:
    """The CAs that signed a certificate; if it cannot be told, all that may have."""
    named = by_name.get(certificate.issuer, ())
    if len(named) == 1:
        return named
    return [each for each in named if issued_by(certificate, each)] or named


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
            # A root needs no issuer, and a namesake of it may be revoked.
            if each in found or each.issuer == each.subject:
                continue
            if not found.keys().isdisjoint(by_name.get(each.issuer, ())) and all(
                one in found for one in _signers(each, by_name)
            ):
                found[each] = None
                more = True

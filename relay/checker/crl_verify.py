"""Verifies what a server sent as a revocation list, before it is kept.

The preparer verifies it again, for each trust set, before it counts. Here it is
verified so that a bad answer does not replace the last good list.

Never: reads a file or opens a connection.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from relay.checker.crl_download import FetchError
from relay.checker.crl_fetch import Kind, ListFacts, Verify
from relay.errors import Problem
from relay.shared.label_values import CRL_INVALID
from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.findings import quoted
from relay.tls.revocation.crl import (
    RevocationList,
    check_date,
    entries_of,
    find_signer,
    key_id,
    parse_lists,
)
from relay.tls.revocation.fields import CrlError


def verifier(cas: Sequence[Certificate]) -> Verify:
    """Verifies lists that one of these CAs has to have signed."""

    def verify(body: bytes) -> tuple[ListFacts, ...]:
        problems: list[Problem] = []
        found = parse_lists("", "the answer", body, problems)
        for problem in problems:
            raise FetchError(CRL_INVALID, problem.what)
        try:
            return tuple(_verified(one, cas) for one in found)
        except CrlError as error:
            raise FetchError(CRL_INVALID, error.what) from None

    return verify


def _verified(crl: RevocationList, cas: Sequence[Certificate]) -> ListFacts:
    check_date(crl, time.time())
    signer = find_signer(crl, cas)
    for _ in entries_of(crl):
        pass  # every entry can be read
    is_delta = crl.base_number is not None
    number = "" if crl.number is None else f" {crl.number}"
    return ListFacts(
        f"{'delta CRL' if is_delta else 'CRL'}{number} of {quoted(crl.issuer.rfc4514_string())}",
        Kind(crl.issuer, key_id(signer.spki), crl.scope, is_delta),
        crl.number,
        crl.this_update,
        crl.next_update,
        crl.next_publish,
    )

"""Whether a certificate's names are those that its CAs may issue (RFC 5280, 4.2.1.10).

Never: compares names by itself; OpenSSL does, as it does in a peer's handshake.
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.extensions import limits_names, subject_of
from relay.tls.certificates.findings import Certificates, Level, quoted
from relay.tls.certificates.openssl import NAME_CONSTRAINT_CODES, Issuers, Role, verify


def judge_constraints(
    chain: Certificates, role: Role, known: Issuers
) -> Iterator[tuple[Level, str, str, Certificate]]:
    """Level, what and remedy where a CA of the file, or one above that is known, may not issue these names.

    The root need not be known for that: peers know it, and see the same.
    """
    anchors = tuple(dict.fromkeys((*known.above(chain), *chain[1:])))
    refusal = verify(chain[0], chain[1:], anchors, role=role, partial=True)
    if refusal is None or refusal.code not in NAME_CONSTRAINT_CODES:
        return
    names = ", ".join(quoted(subject_of(each)) for each in anchors if limits_names(each))
    what = (
        f"OpenSSL would refuse this chain: {refusal.words}; "
        f"{names or 'a CA above it'} may not issue all of its names (nameConstraints)"
    )
    remedy = "issue it with names that its CA may issue, or by another CA"
    yield Level.WARNING, what, remedy, refusal.certificate

"""Checks whether peers can build a path from the certificates that the relay sends.

Never: compares names with name constraints itself; OpenSSL does, as in a peer's
handshake.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from relay.tls.certificates.certificate import Certificate, subject_of
from relay.tls.certificates.extensions import has_name_constraints, is_ca
from relay.tls.certificates.findings import Certificates, Level, quoted
from relay.tls.certificates.openssl import (
    NAME_CONSTRAINT_CODES,
    Issuers,
    Role,
    is_self_signed,
    issued_by,
    verify,
)


class ChainProblem(NamedTuple):
    """What is wrong with a chain, and the certificate at fault."""

    level: Level
    what: str
    remedy: str
    certificate: Certificate


def lint_chain(chain: Certificates, role: Role, known: Issuers) -> Iterator[ChainProblem]:
    """Check the order of a chain, its last certificate, and its CAs."""
    for below, above in pairwise(chain):
        if not issued_by(below, above):
            what = (
                f"is followed by {quoted(subject_of(above))}, which did not issue it;"
                f" its issuer is {_issuer(below)}"
            )
            remedy = (
                "put the leaf first and each certificate's issuer after it;"
                " remove certificates that are not part of the chain"
            )
            yield ChainProblem(Level.WARNING, what, remedy, below)
            return
    last = chain[-1]
    if is_self_signed(last):
        if len(chain) == 1:
            what = "is self-signed: a peer trusts it only if it has this exact certificate"
            yield ChainProblem(
                Level.WARNING, what, "have it issued by a CA that the peers trust", last
            )
            return
    elif not (issuers := known.of(last)):
        what = (
            f"the chain ends here: its issuer {_issuer(last)} is neither in this file"
            " nor in any configured CA file"
        )
        # Public CAs hand out files that end with an intermediate, and peers have the
        # root. A single leaf is the usual mistake.
        level = Level.INFO if len(chain) > 1 and is_ca(last) else Level.WARNING
        remedy = "if the issuer is an intermediate, append it to the file; a root is not needed"
        yield ChainProblem(level, what, remedy, last)
        return
    elif not any(map(is_self_signed, issuers)):
        what = (
            f"its issuer {_issuer(last)} is an intermediate that is not in this file,"
            " so peers that know only the root will refuse it"
        )
        yield ChainProblem(
            Level.WARNING, what, "append the intermediate certificates to the file", last
        )
    anchors = (*known.above(chain), *filter(is_self_signed, chain))
    failure = verify(chain[0], chain[1:], anchors, role=role)
    # Faults of the leaf itself have their own findings.
    if failure and failure.code not in NAME_CONSTRAINT_CODES and failure.certificate != chain[0]:
        what = f"OpenSSL would refuse this chain: {failure.text}"
        remedy = "reissue this CA certificate, or use a chain without it"
        yield ChainProblem(Level.WARNING, what, remedy, failure.certificate)


def lint_name_constraints(
    chain: Certificates, role: Role, known: Issuers
) -> Iterator[ChainProblem]:
    """Check that the CAs above may issue these names (RFC 5280, 4.2.1.10).

    The root need not be known: peers know it, and reach the same result.
    """
    anchors = tuple(dict.fromkeys((*known.above(chain), *chain[1:])))
    failure = verify(chain[0], chain[1:], anchors, role=role, partial=True)
    if failure is None or failure.code not in NAME_CONSTRAINT_CODES:
        return
    names = ", ".join(quoted(subject_of(each)) for each in anchors if has_name_constraints(each))
    what = (
        f"OpenSSL would refuse this chain: {failure.text}; "
        f"{names or 'a CA above it'} may not issue all of its names (nameConstraints)"
    )
    remedy = "issue it with names that its CA may issue, or by another CA"
    yield ChainProblem(Level.WARNING, what, remedy, failure.certificate)


def _issuer(certificate: Certificate) -> str:
    return quoted(certificate.issuer.rfc4514_string())

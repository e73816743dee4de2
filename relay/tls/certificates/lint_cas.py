"""Checks whether peers with certificates of the configured CAs would be accepted.

The work grows in proportion to the number of CAs in a file: OpenSSL gets one store per
file.

Never: raises, or checks a certificate that the relay presents (that is
`tls.certificates.lint_key_pairs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from relay.config.values import MAX_CAS
from relay.credentials import shown
from relay.tls.certificates.certificate import Certificate, subject_of
from relay.tls.certificates.configured import AuthorityUse, ChainRules
from relay.tls.certificates.extensions import NEEDED_EKU, ekus_of, is_ca, key_usage_of
from relay.tls.certificates.findings import (
    REISSUE,
    Certificates,
    Finding,
    Level,
    date_problems,
    if_other,
    info_lines,
    quoted,
)
from relay.tls.certificates.openssl import (
    Issuers,
    Role,
    Verifier,
    VerifyFailure,
    extension_error,
    is_self_signed,
    verify,
    weakness_of,
)
from relay.tls.certificates.strict import strict_failure
from relay.tls.certificates.validity import is_valid, windows_of

# RFC 8446, 4.2.4: at most 2^16 bytes for this list and the request's other extensions.
MAX_CA_NAMES_BYTES = 65_000


class _Bundle:
    """The CAs of one file, verified by OpenSSL with all of them trusted."""

    def __init__(self, certificates: Certificates, rules: ChainRules) -> None:
        self.certificates = certificates
        self.rules = rules
        self.issuers = Issuers(certificates)
        self._verifier = Verifier(certificates, partial=rules.partial_chain)

    def verify(self, certificate: Certificate) -> VerifyFailure | None:
        """Why OpenSSL would refuse a CA, ignoring dates; None if it accepts it.

        Several CAs may have the same name and key, for example after a renewal. In a
        handshake OpenSSL picks the one whose dates are good. Without dates it may pick
        another one than `certificate`, and then refuses `certificate`. In that case
        `certificate` is verified again without its namesakes.
        """
        failure = self._verifier.verify(certificate)
        if failure is None or len(self.issuers.named(certificate.subject)) == 1:
            return failure
        partial = self.rules.partial_chain
        return verify(certificate, (), (certificate, *self._above(certificate)), partial=partial)

    def verify_strictly(self, certificate: Certificate) -> VerifyFailure | None:
        """Why strict verification would refuse what a CA issued."""
        above = self._above(certificate)
        return strict_failure(certificate, above, partial=self.rules.partial_chain)

    def _above(self, certificate: Certificate) -> list[Certificate]:
        above = self.issuers.above((certificate,))
        return [each for each in above if each.subject != certificate.subject]

    def depth(self, certificate: Certificate) -> int:
        """The CAs of the shortest chain from this CA to a root; 1 without a limit."""
        depth, level = 1, [certificate]
        if self.rules.partial_chain or self.rules.max_chain_depth == MAX_CAS:
            return depth
        while depth <= self.rules.max_chain_depth and not any(map(is_self_signed, level)):
            level = [above for each in level for above in self.issuers.of(each)]
            depth += 1
        return depth


def lint_bundle(use: AuthorityUse, certificates: Certificates, now: datetime) -> Iterator[Finding]:
    """Check the CAs of one file. A CA without error or warning gets an INFO line."""
    role = Role.SERVER if use.pool else Role.CLIENT
    bundle = _Bundle(certificates, use.rules)
    out_of_date = {each: _date_errors(each, now) for each in certificates}
    faults = {each: list(_ca_faults(each, bundle, role)) for each in certificates}
    sound = [each for each in certificates if not faults[each]]
    # An old CA beside its successor must not prevent a start. If the only fault of some
    # CA is its dates, the file may become usable by itself: all findings are temporary.
    windows = windows_of(sound, partial=use.rules.partial_chain)
    served = any(is_valid(window, now) for window in windows.values())
    level = Level.WARNING if served else Level.ERROR
    file = shown(use.file)
    for certificate in certificates:
        subject = subject_of(certificate)
        found = [
            Finding(level, file, subject, what, remedy, use.where, bool(sound))
            for what, remedy in (*out_of_date[certificate], *faults[certificate])
        ]
        if not found:
            found = list(_lint_usable_ca(use, certificate, bundle, now))
        yield from found
        if all(finding.level is Level.INFO for finding in found):
            yield from info_lines((), use.where, file, (certificate,))


def lint_names(use: AuthorityUse, certificates: Certificates) -> Iterator[Finding]:
    """Check that the names of these CAs fit into a certificate request."""
    names = {each.subject.public_bytes() for each in certificates}
    size = sum(2 + len(name) for name in names)
    if size > MAX_CA_NAMES_BYTES:
        what = (
            f"the names of its {len(names)} CAs take {size} bytes, and a TLS message has room"
            f" for {MAX_CA_NAMES_BYTES}: every handshake would fail"
        )
        remedy = "set send_ca_names = false in the route, or put fewer CAs in the file"
        yield Finding(Level.ERROR, shown(use.file), "", what, remedy, use.where)


def usable_cas(use: AuthorityUse, certificates: Certificates, now: datetime) -> list[Certificate]:
    """The CAs whose clients or servers would be accepted, ignoring dates."""
    if all(not _date_errors(each, now) for each in certificates):
        return list(certificates)  # without date problems, other faults do not matter here
    role = Role.SERVER if use.pool else Role.CLIENT
    bundle = _Bundle(certificates, use.rules)
    return [each for each in certificates if not any(_ca_faults(each, bundle, role))]


def _date_errors(certificate: Certificate, now: datetime) -> list[tuple[str, str]]:
    return [
        (what, remedy)
        for level, what, remedy in date_problems(certificate, now)
        if level is Level.ERROR
    ]


def _lint_usable_ca(
    use: AuthorityUse, certificate: Certificate, bundle: _Bundle, now: datetime
) -> Iterator[Finding]:
    def finding(level: Level, what: str, remedy: str) -> Finding:
        return Finding(level, shown(use.file), subject_of(certificate), what, remedy, use.where)

    for _, what, _ in date_problems(certificate, now):
        yield finding(Level.WARNING, what, "add its successor to the file")
    if not is_ca(certificate):
        why = "it is self-signed" if is_self_signed(certificate) else "partial_chain is set"
        what = f"is not a CA certificate: {why}, so only the one peer that has it is trusted"
        remedy = "give the path of the CA's file, unless you want to trust exactly this peer"
        yield finding(Level.WARNING, what, remedy)
    elif not use.rules.strict_x509 and (strict := bundle.verify_strictly(certificate)):
        what = (
            "would be refused by strict verification (X509_STRICT):"
            f" {strict.text}{if_other(strict, certificate)}"
        )
        yield finding(Level.INFO, what, "nothing needs to be done with default settings")


def _ca_faults(certificate: Certificate, bundle: _Bundle, role: Role) -> Iterator[tuple[str, str]]:
    """Why no certificate of this CA would be accepted, ignoring dates."""
    issuer = quoted(certificate.issuer.rfc4514_string())
    alone = is_self_signed(certificate) or bundle.rules.partial_chain
    if not is_ca(certificate) and not alone:
        usage = key_usage_of(certificate)
        lacking = (
            "its keyUsage lacks keyCertSign"
            if usage is not None and not usage.key_cert_sign
            else "it has no basicConstraints with CA:TRUE"
        )
        what = f"is not a CA certificate: {lacking}"
        yield what, f"replace it with the certificate of its issuer, {issuer}"
        return
    needed = {NEEDED_EKU[role]}
    if bundle.rules.accept_server_certificates:
        needed |= set(NEEDED_EKU.values())
    ekus = ekus_of(certificate)
    if ekus is not None and needed.isdisjoint(ekus):
        cannot = f"issue {role} certificates" if is_ca(certificate) else f"serve as a {role}"
        remedy = f"use the CA that issues the {role} certificates"
        if role is Role.CLIENT and "serverAuth" in ekus:
            remedy += ", or set accept_server_certificates = true and name the clients in allow"
        yield f"cannot {cannot}: its extendedKeyUsage has only {', '.join(ekus)}", remedy
    if (weakness := weakness_of(certificate)) and weakness.refused:
        yield (
            weakness.what,
            "replace this CA with one that has an EC P-256 key or RSA of 2048 bits or more",
        )
    if broken := extension_error(certificate):
        what = f"{broken}: OpenSSL refuses every certificate that it issued"
        yield what, f"replace it, or {REISSUE}"
        return
    failure = bundle.verify(certificate)
    if failure and not is_self_signed(certificate) and not bundle.issuers.of(certificate):
        what = (
            f"is an intermediate, and its issuer {issuer} is not in this file:"
            " OpenSSL accepts a chain only if it ends with a root"
        )
        yield (
            what,
            "append the root to the file, or set partial_chain = true to trust this CA without it",
        )
    elif failure:
        yield f"is refused by OpenSSL: {failure.text}{if_other(failure, certificate)}", "replace it"
    elif bundle.rules.strict_x509 and (strict := bundle.verify_strictly(certificate)):
        what = f"is refused by strict_x509: {strict.text}{if_other(strict, certificate)}"
        yield what, "reissue it, or remove strict_x509"
    elif (depth := bundle.depth(certificate)) > bundle.rules.max_chain_depth:
        what = (
            f"the chains of certificates that it issued have {depth} CAs or more, and"
            f" max_chain_depth is {bundle.rules.max_chain_depth}"
        )
        yield what, "raise max_chain_depth"

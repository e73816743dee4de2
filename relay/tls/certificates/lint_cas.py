"""Checks whether peers with certificates of the configured CAs would be accepted.

The work grows in proportion to the number of CAs in a file: OpenSSL gets one store per
file.

Never: raises, or checks a certificate that the relay presents (that is
`tls.certificates.lint_key_pairs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from relay.credentials import shown
from relay.tls.certificates.certificate import Certificate, subject_of
from relay.tls.certificates.configured import AuthorityUse
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
from relay.tls.certificates.validity import is_valid, windows_of

# RFC 8446, 4.2.4: at most 2^16 bytes for this list and the request's other extensions.
MAX_CA_NAMES_BYTES = 65_000


class _Bundle:
    """The CAs of one file, verified by OpenSSL with all of them trusted."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.issuers = Issuers(certificates)
        self._default = Verifier(certificates)
        self._strict = Verifier(certificates, strict=True)

    def verify(self, certificate: Certificate, *, strict: bool = False) -> VerifyFailure | None:
        """Why OpenSSL would refuse a CA, ignoring dates; None if it accepts it.

        Several CAs may have the same name and key, for example after a renewal. In a
        handshake OpenSSL picks the one whose dates are good. Without dates it may pick
        another one than `certificate`, and then refuses `certificate`. In that case
        `certificate` is verified again without its namesakes.
        """
        failure = (self._strict if strict else self._default).verify(certificate)
        if failure is None or len(self.issuers.named(certificate.subject)) == 1:
            return failure
        above = self.issuers.above((certificate,))
        others = [each for each in above if each.subject != certificate.subject]
        return verify(certificate, (), (certificate, *others), strict=strict)


def lint_bundle(use: AuthorityUse, certificates: Certificates, now: datetime) -> Iterator[Finding]:
    """Check the CAs of one file. A CA without error or warning gets an INFO line."""
    role = Role.SERVER if use.pool else Role.CLIENT
    bundle = _Bundle(certificates)
    out_of_date = {each: _date_errors(each, now) for each in certificates}
    faults = {each: list(_ca_faults(each, bundle, role)) for each in certificates}
    sound = [each for each in certificates if not faults[each]]
    # An old CA beside its successor must not prevent a start. If the only fault of some
    # CA is its dates, the file may become usable by itself: all findings are temporary.
    served = any(is_valid(window, now) for window in windows_of(sound).values())
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
    bundle = _Bundle(certificates)
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
        yield finding(Level.WARNING, what, "add its successor to the file, and reload")
    if not is_ca(certificate):
        what = (
            "is not a CA certificate: it is self-signed,"
            " so only the one peer that has it is trusted"
        )
        remedy = "give the path of the CA's file, unless you want to trust exactly this peer"
        yield finding(Level.WARNING, what, remedy)
    elif strict := bundle.verify(certificate, strict=True):
        what = (
            "would be refused by strict verification (X509_STRICT):"
            f" {strict.text}{if_other(strict, certificate)}"
        )
        yield finding(Level.INFO, what, "nothing needs to be done with default settings")


def _ca_faults(certificate: Certificate, bundle: _Bundle, role: Role) -> Iterator[tuple[str, str]]:
    """Why no certificate of this CA would be accepted, ignoring dates."""
    issuer = quoted(certificate.issuer.rfc4514_string())
    if not is_ca(certificate) and not is_self_signed(certificate):
        usage = key_usage_of(certificate)
        lacking = (
            "its keyUsage lacks keyCertSign"
            if usage is not None and not usage.key_cert_sign
            else "it has no basicConstraints with CA:TRUE"
        )
        what = f"is not a CA certificate: {lacking}"
        yield what, f"replace it with the certificate of its issuer, {issuer}"
        return
    ekus = ekus_of(certificate)
    if ekus is not None and NEEDED_EKU[role] not in ekus:
        yield (
            f"cannot issue {role} certificates: its extendedKeyUsage has only {', '.join(ekus)}",
            f"use the CA that issues the {role} certificates",
        )
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
        yield what, "append the root to the file"
    elif failure:
        yield f"is refused by OpenSSL: {failure.text}{if_other(failure, certificate)}", "replace it"

"""Judges the CAs that a configuration trusts: whether what they issued would be accepted.

The work grows with the number of CAs in a file, and not with its square: OpenSSL is asked with one store per file.

Never: raises, or looks at a certificate that we show (that is `tls.certificates.lint`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.extensions import NEEDED_EKU, ekus_of, is_ca, key_usage_of, subject_of
from relay.tls.certificates.findings import (
    REISSUE,
    Certificates,
    Finding,
    Level,
    blame,
    dates,
    fine,
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
from relay.tls.certificates.pem import AuthorityUse, name_of
from relay.tls.certificates.validity import is_valid, windows_of

# RFC 8446, 4.2.4: 2^16 for the list and all other extensions of the request.
MAX_CA_NAMES_BYTES = 65_000


class _Bundle:
    """The CAs of one file, with what OpenSSL says of each when it trusts them all."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.issuers = Issuers(certificates)
        self._trust = Verifier(certificates)
        self._strict = Verifier(certificates, strict=True)

    def verify(self, certificate: Certificate, *, strict: bool = False) -> VerifyFailure | None:
        """Why OpenSSL would refuse it, dates aside.

        Of several CAs with one name and key, as after a renewal, a handshake takes the one whose dates are good. Without dates
        OpenSSL takes any, and then finds that it is not the certificate that is asked about: so that one is asked about alone.
        """
        refusal = (self._strict if strict else self._trust).verify(certificate)
        if refusal is None or len(self.issuers.named(certificate.subject)) == 1:
            return refusal
        above = self.issuers.above((certificate,))
        others = [each for each in above if each.subject != certificate.subject]
        return verify(certificate, (), (certificate, *others), strict=strict)


def lint_bundle(use: AuthorityUse, certificates: Certificates, now: datetime) -> Iterator[Finding]:
    """Everything worth saying about the CAs of one file; one without error or warning has an INFO line."""
    role = Role.SERVER if use.pool else Role.CLIENT
    bundle = _Bundle(certificates)
    ill_timed = {each: _ill_timed(each, now) for each in certificates}
    faults = {each: list(_ca_faults(each, bundle, role)) for each in certificates}
    sound = [each for each in certificates if not faults[each]]
    # An old CA beside its successor is no reason not to start. Where all that is wrong is dates, it passes.
    served = any(is_valid(window, now) for window in windows_of(sound).values())
    level = Level.WARNING if served else Level.ERROR
    for certificate in certificates:
        found = (*ill_timed[certificate], *faults[certificate])
        said = [
            Finding(
                level, str(use.file), subject_of(certificate), what, remedy, use.where, bool(sound)
            )
            for what, remedy in found
        ]
        if not said:
            said = list(_judge_good_ca(use, certificate, bundle, now))
        yield from said
        if all(finding.level is Level.INFO for finding in said):
            yield from fine((), use.where, str(use.file), (certificate,))


def lint_names(use: AuthorityUse, certificates: Certificates) -> Iterator[Finding]:
    """Whether the names of these CAs have room in the message that asks a client for its certificate."""
    names = {each.subject.public_bytes() for each in certificates}
    size = sum(2 + len(name) for name in names)
    if size > MAX_CA_NAMES_BYTES:
        what = f"the names of its {len(names)} CAs take {size} bytes, and a TLS message has room for {MAX_CA_NAMES_BYTES}: every handshake would fail"
        yield Finding(
            Level.ERROR,
            str(use.file),
            "",
            what,
            "set send_ca_names = false in the route, or name fewer CAs",
            use.where,
        )


def usable_cas(use: AuthorityUse, certificates: Certificates, now: datetime) -> list[Certificate]:
    """Those whose clients or servers would be accepted, dates aside."""
    if all(not _ill_timed(each, now) for each in certificates):
        return list(certificates)  # nothing about time to tell apart
    role = Role.SERVER if use.pool else Role.CLIENT
    bundle = _Bundle(certificates)
    return [each for each in certificates if not any(_ca_faults(each, bundle, role))]


def _ill_timed(certificate: Certificate, now: datetime) -> list[tuple[str, str]]:
    return [
        (what, remedy) for level, what, remedy in dates(certificate, now) if level is Level.ERROR
    ]


def _judge_good_ca(
    use: AuthorityUse, certificate: Certificate, bundle: _Bundle, now: datetime
) -> Iterator[Finding]:
    subject = subject_of(certificate)
    for _, what, _ in dates(certificate, now):
        yield Finding(
            Level.WARNING,
            str(use.file),
            subject,
            what,
            "add its successor to the file, and reload",
            use.where,
        )
    if not is_ca(certificate):
        what = "is not a CA certificate: as a trusted self-signed certificate it vouches for itself alone"
        yield Finding(
            Level.WARNING,
            str(use.file),
            subject,
            what,
            "name the file of the CA, unless exactly this peer is meant",
            use.where,
        )
    elif strict := bundle.verify(certificate, strict=True):
        what = f"would be refused by strict verification (X509_STRICT): {strict.words}" + blame(
            strict, certificate
        )
        yield Finding(
            Level.INFO,
            str(use.file),
            subject,
            what,
            "nothing needs to be done with default settings",
            use.where,
        )


def _ca_faults(certificate: Certificate, bundle: _Bundle, role: Role) -> Iterator[tuple[str, str]]:
    """Why nothing that this certificate issued would be accepted, dates aside."""
    if not is_ca(certificate) and not is_self_signed(certificate):
        usage = key_usage_of(certificate)
        lacking = (
            "its keyUsage lacks keyCertSign"
            if usage is not None and not usage.key_cert_sign
            else "its basicConstraints do not say so"
        )
        yield (
            f"is not a CA certificate: {lacking}",
            f"put the certificate of its issuer, {quoted(name_of(certificate.issuer))}, there",
        )
        return
    ekus = ekus_of(certificate)
    if ekus is not None and NEEDED_EKU[role] not in ekus:
        yield (
            f"may not vouch for a {role}: its extendedKeyUsage has only {', '.join(ekus)}",
            "name the CA that issues these certificates",
        )
    if (weakness := weakness_of(certificate)) and weakness.refused:
        yield (
            weakness.what,
            "replace this CA by one with an EC P-256 key or RSA of 2048 bits or more",
        )
    if broken := extension_error(certificate):
        yield f"{broken}: OpenSSL trusts nothing that it issued", f"replace it, or {REISSUE}"
        return
    refusal = bundle.verify(certificate)
    if refusal and not is_self_signed(certificate) and not bundle.issuers.of(certificate):
        yield (
            f"is an intermediate, and its issuer {quoted(name_of(certificate.issuer))} is not in this file: OpenSSL trusts a path only up to a root",
            "append the root to the file",
        )
    elif refusal:
        yield f"is refused by OpenSSL: {refusal.words}" + blame(refusal, certificate), "replace it"

"""Judges every configured certificate for its task, as one would by hand with `openssl x509 -purpose`, and says what to do.

Where OpenSSL's opinion matters it is OpenSSL that is asked (`tls.verdict`), so that a certificate is refused here if and only if
peers that use it would refuse it in the handshake; the words that explain it are ours.

Never: raises for a bad file, looks at a certificate's private key beyond the mode of its file, or changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise

from cryptography import x509

from relay.config.model import Config
from relay.errors import ConfigError, Problem
from relay.tls.material import AuthorityUse, KeyPair, PairUse, authorities_of, load_authorities, load_key_pair, name_of, pairs_of
from relay.tls.profile import ekus_of, extension_of, is_ca, key_usage_of, subject_of
from relay.tls.verdict import Refusal, Role, is_self_signed, issued_by, refusal_of, weakness_of

SOON = timedelta(days=30)
_NEEDED_EKU = {Role.SERVER: "serverAuth", Role.CLIENT: "clientAuth"}

Certificates = tuple[x509.Certificate, ...]


class Level(StrEnum):
    """What a finding means: an ERROR is refused by start and reload, a WARNING is worth an operator's time, an INFO is for the table."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: about which certificate of which file, where the configuration names it (several places are joined by commas), what to do.

    `file` and `subject` are empty where a file could not be read or parsed; `what` names the file then.
    """

    level: Level
    file: str
    subject: str
    what: str
    remedy: str
    where: str


def judge(config: Config, now: datetime) -> list[Finding]:
    """Everything worth saying about every certificate, errors first; a certificate without error or warning has one INFO line. `now` is aware."""
    findings: list[Finding] = []
    pairs: list[tuple[PairUse, KeyPair]] = []
    bundles: list[tuple[AuthorityUse, Certificates]] = []
    for pair_use in pairs_of(config):
        try:
            pairs.append((pair_use, load_key_pair(pair_use.where, pair_use.certificate, pair_use.private_key)))
        except ConfigError as error:
            findings += map(_unreadable, error.problems)
    for use in authorities_of(config):
        try:
            bundles.append((use, load_authorities(use.where, use.file)))
        except ConfigError as error:
            findings += map(_unreadable, error.problems)
    known = tuple(dict.fromkeys(certificate for _, bundle in bundles for certificate in bundle))
    for pair_use, pair in pairs:
        said = list(_judge_pair(pair_use, pair, known, now))
        findings += said
        findings += _fine(said, pair_use.where, pair.file, pair.chain)
        findings += _judge_kinship(pair_use, pair, [bundle for use, bundle in bundles if pair_use.pool and use.pool == pair_use.pool])
    for use, bundle in bundles:
        said = list(_judge_bundle(use, bundle, now))
        findings += said
        findings += _fine(said, use.where, str(use.file), bundle)
    return _merged(findings)


def _unreadable(problem: Problem) -> Finding:
    return Finding(Level.ERROR, "", "", problem.what, problem.remedy, problem.where)


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """The same file used in several places is one finding with several places."""
    places: dict[Finding, dict[str, None]] = {}
    for finding in findings:
        places.setdefault(replace(finding, where=""), {})[finding.where] = None
    merged = [replace(finding, where=", ".join(wheres)) for finding, wheres in places.items()]
    return sorted(merged, key=lambda finding: list(Level).index(finding.level))


def _fine(said: Iterable[Finding], where: str, file: str, certificates: Certificates) -> Iterator[Finding]:
    blamed = {finding.subject for finding in said if finding.level is not Level.INFO}
    for certificate in certificates:
        if subject_of(certificate) not in blamed:
            what = f"valid until {_day(certificate.not_valid_after_utc)}, issued by {_quoted(name_of(certificate.issuer))}"
            yield Finding(Level.INFO, file, subject_of(certificate), what, "", where)


# A certificate we show.


def _judge_pair(use: PairUse, pair: KeyPair, known: Certificates, now: datetime) -> Iterator[Finding]:
    role = Role.CLIENT if use.pool else Role.SERVER
    leaf, rest = pair.chain[0], pair.chain[1:]

    def finding(level: Level, what: str, remedy: str, about: x509.Certificate = leaf) -> Finding:
        return Finding(level, pair.file, subject_of(about), what, remedy, use.where)

    for certificate in pair.chain:
        # A root in the file is not sent, so its end does not matter to anybody.
        unsent = certificate is not leaf and is_self_signed(certificate)
        for level, what, remedy in _dates(certificate, now):
            yield finding(Level.WARNING if unsent else level, what, "remove it from the file" if unsent else remedy, certificate)
        if not unsent and (weakness := weakness_of(certificate)):
            yield finding(
                Level.ERROR if weakness.refused else Level.WARNING, weakness.what, "issue it with an EC P-256 key or RSA of 2048 bits or more, signed with SHA-256", certificate
            )
    if refusal := refusal_of(leaf, trusted=(leaf,), role=role, partial=True):
        yield finding(Level.ERROR, f"cannot serve as a {role}: {_why_unfit(leaf, role, refusal)}", f"issue a certificate with extendedKeyUsage {_NEEDED_EKU[role]}")
    elif (usage := key_usage_of(leaf)) is not None and not usage.digital_signature:
        yield finding(Level.WARNING, "its keyUsage lacks digitalSignature, which TLS 1.3 and every ECDHE cipher use it for", "issue it with keyUsage digitalSignature")
    yield from (finding(level, what, remedy, about) for level, what, remedy, about in _chain_findings(pair.chain, role, known))
    if not use.pool:
        yield from (finding(Level.WARNING, what, remedy) for what, remedy in _uncovered(leaf, use.sni))
    anchors = (*known, *filter(is_self_signed, rest))
    if not refusal_of(leaf, rest, anchors, role=role) and (strict := refusal_of(leaf, rest, anchors, role=role, strict=True)):
        what = f"would be refused by peers that verify strictly (X509_STRICT): {strict.words}" + _blame(strict, leaf)
        yield finding(Level.INFO, what, "nothing needs to be done for peers with default settings")
    yield from _judge_mode(use)


def _chain_findings(chain: Certificates, role: Role, known: Certificates) -> Iterator[tuple[Level, str, str, x509.Certificate]]:
    for below, above in pairwise(chain):
        if not issued_by(below, above):
            what = f"is followed by {_quoted(subject_of(above))}, which did not issue it; its issuer is {_quoted(name_of(below.issuer))}"
            yield Level.WARNING, what, "order the file: the leaf, its issuer, that one's issuer; remove what does not belong to the chain", below
            return
    last = chain[-1]
    if is_self_signed(last):
        if len(chain) == 1:
            yield Level.WARNING, "is self-signed: each peer must be given this very certificate to trust it", "issue it by a CA the peers trust", last
            return
    elif not (issuers := [each for each in known if issued_by(last, each)]):
        what = f"the chain ends here: its issuer {_quoted(name_of(last.issuer))} is neither in this file nor in any configured CA file"
        # A file that ends with a CA is what public CAs hand out, their root is in the peers' hands; a lone leaf is the usual mistake.
        level = Level.INFO if len(chain) > 1 and is_ca(last) else Level.WARNING
        yield level, what, "if that is an intermediate, append it to the file; a root need not be there", last
        return
    elif not any(map(is_self_signed, issuers)):
        what = f"its issuer {_quoted(name_of(last.issuer))} is an intermediate that is not in this file, so peers that know only the root will refuse it"
        yield Level.WARNING, what, "append the intermediate certificates to the file", last
    anchors = (*known, *filter(is_self_signed, chain))
    refusal = refusal_of(chain[0], chain[1:], anchors, role=role)
    if refusal and refusal.certificate != chain[0]:  # what is wrong with the leaf itself was said
        yield Level.WARNING, f"OpenSSL would refuse this chain: {refusal.words}", "issue this CA certificate anew, or leave it out of the path", refusal.certificate


def _uncovered(leaf: x509.Certificate, patterns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Names a route answers to and its certificate does not carry (RFC 6125, 6.4: a wildcard covers one label; the common name counts for nothing)."""
    names = extension_of(leaf, x509.SubjectAlternativeName)
    carried = {name.lower() for name in names.get_values_for_type(x509.DNSName)} if names else set()
    if not carried and not (names and names.get_values_for_type(x509.IPAddress)):
        yield "carries no name: it has no subjectAltName with a DNS name or an IP address, and clients do not look at the common name", "issue it with the names clients connect to"
        return
    missing = [pattern for pattern in patterns if pattern.lower() not in carried and f"*.{pattern.lower().partition('.')[2]}" not in carried]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        yield f"does not carry {shown} of the route's sni, so clients that connect by that name will refuse it", "issue it with every name of the route, or give those names their own route"


def _judge_mode(use: PairUse) -> Iterator[Finding]:
    try:
        mode = use.private_key.stat().st_mode & 0o7777
    except OSError:  # it was readable a moment ago; the loader says so when it is not
        return
    if mode & 0o004:
        yield Finding(Level.WARNING, str(use.private_key), "", f"every user of this machine can read this private key (mode {mode:04o})", f"chmod 600 {use.private_key}", use.where)


def _judge_kinship(use: PairUse, pair: KeyPair, bundles: list[Certificates]) -> Iterator[Finding]:
    """Backends and gateways commonly share a CA: would this pool's backend_ca accept the machine certificate?"""
    for bundle in bundles:
        if refusal_of(pair.leaf, pair.chain[1:], bundle):
            what = f"does not lead to this pool's backend_ca, it is issued by {_quoted(name_of(pair.leaf.issuer))}; backends that trust only their own CA will refuse it"
            yield Finding(Level.INFO, pair.file, subject_of(pair.leaf), what, "nothing, if the backends' client CA is another one on purpose", use.where)


# A CA we trust.


def _judge_bundle(use: AuthorityUse, bundle: Certificates, now: datetime) -> Iterator[Finding]:
    role = Role.SERVER if use.pool else Role.CLIENT
    faults = {certificate: list(_ca_faults(certificate, bundle, role, now)) for certificate in bundle}
    # An old CA beside its successor is no reason not to start.
    level = Level.WARNING if any(not each for each in faults.values()) else Level.ERROR
    for certificate in bundle:
        subject = subject_of(certificate)
        for what, remedy in faults[certificate]:
            yield Finding(level, str(use.file), subject, what, remedy, use.where)
        if not faults[certificate]:
            for _, what, _ in _dates(certificate, now):
                yield Finding(Level.WARNING, str(use.file), subject, what, "add its successor to the file, and reload", use.where)
            if not is_ca(certificate):
                what = "is not a CA certificate: as a trusted self-signed certificate it vouches for itself alone"
                yield Finding(Level.WARNING, str(use.file), subject, what, "name the file of the CA, unless exactly this peer is meant", use.where)
            elif strict := refusal_of(certificate, (), bundle, strict=True):
                what = f"would be refused by strict verification (X509_STRICT): {strict.words}" + _blame(strict, certificate)
                yield Finding(Level.INFO, str(use.file), subject, what, "nothing needs to be done with default settings", use.where)


def _ca_faults(certificate: x509.Certificate, bundle: Certificates, role: Role, now: datetime) -> Iterator[tuple[str, str]]:
    """Why nothing that this certificate issued would be accepted."""
    for level, what, remedy in _dates(certificate, now):
        if level is Level.ERROR:
            yield what, remedy
    if not is_ca(certificate) and not is_self_signed(certificate):
        usage = key_usage_of(certificate)
        lacking = "its keyUsage lacks keyCertSign" if usage is not None and not usage.key_cert_sign else "its basicConstraints do not say so"
        yield f"is not a CA certificate: {lacking}", f"put the certificate of its issuer, {_quoted(name_of(certificate.issuer))}, there"
        return
    ekus = ekus_of(certificate)
    if ekus is not None and _NEEDED_EKU[role] not in ekus:
        yield f"may not vouch for a {role}: its extendedKeyUsage has only {', '.join(ekus)}", "name the CA that issues these certificates"
    if (weakness := weakness_of(certificate)) and weakness.refused:
        yield weakness.what, "replace this CA by one with an EC P-256 key or RSA of 2048 bits or more"
    refusal = refusal_of(certificate, (), bundle)
    if refusal and not is_self_signed(certificate) and not any(issued_by(certificate, each) for each in bundle):
        yield f"is an intermediate, and its issuer {_quoted(name_of(certificate.issuer))} is not in this file: OpenSSL trusts a path only up to a root", "append the root to the file"
    elif refusal:
        yield f"is refused by OpenSSL: {refusal.words}" + _blame(refusal, certificate), "replace it"


# Words.


def _dates(certificate: x509.Certificate, now: datetime) -> Iterator[tuple[Level, str, str]]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        yield Level.ERROR, f"expired on {_day(end)}, {_days(now - end)} ago", "renew it, and reload"
    elif now < begin:
        yield Level.ERROR, f"is not valid before {_day(begin)}, {_days(begin - now)} from now", "compare this machine's clock with that of its CA, or have it issued anew"
    elif end - now < SOON:
        yield Level.WARNING, f"expires on {_day(end)}, in {_days(end - now)}", "renew it, and reload"


def _why_unfit(leaf: x509.Certificate, role: Role, refusal: Refusal) -> str:
    ekus = ekus_of(leaf)
    if ekus is not None and _NEEDED_EKU[role] not in ekus:
        return f"its extendedKeyUsage has only {', '.join(ekus)}"
    usage = key_usage_of(leaf)
    if usage is not None and not (usage.digital_signature or usage.key_agreement or (role is Role.SERVER and usage.key_encipherment)):
        return "its keyUsage lacks digitalSignature"
    return refusal.words


def _blame(refusal: Refusal, certificate: x509.Certificate) -> str:
    return "" if refusal.certificate == certificate else f" (of {_quoted(subject_of(refusal.certificate))})"


def _quoted(text: str) -> str:
    return f'"{text}"'


def _day(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"


def _days(span: timedelta) -> str:
    hours = int(span.total_seconds() // 3600)
    return f"{hours // 24} days" if hours >= 48 else f"{hours} hours"

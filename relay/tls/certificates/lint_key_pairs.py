"""Checks the certificates that the relay presents: to clients, and to backends.

Never: checks a CA that the relay trusts (that is `tls.certificates.lint_cas`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime

from relay.credentials import shown
from relay.tls.certificates.certificate import Certificate, subject_of
from relay.tls.certificates.configured import PairUse
from relay.tls.certificates.extensions import NEEDED_EKU, ekus_of, key_usage_of
from relay.tls.certificates.findings import REISSUE, Finding, Level, date_problems, if_other, quoted
from relay.tls.certificates.key_kinds import key_problem
from relay.tls.certificates.lint_chain import lint_chain, lint_name_constraints
from relay.tls.certificates.names import SUBJECT_ALT_NAME
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
from relay.tls.certificates.passphrase import passphrase_key
from relay.tls.certificates.pem import KeyPair

_STRONG_KEY = "issue it with an EC P-256 key or RSA of 2048 bits or more, signed with SHA-256"
_MAX_NAMES = 5


def lint_key_pair(use: PairUse, pair: KeyPair, known: Issuers, now: datetime) -> Iterator[Finding]:
    """Check a chain and its key file, apart from its route's or pool's settings."""
    role = Role.CLIENT if use.pool else Role.SERVER
    leaf, rest = pair.chain[0], pair.chain[1:]

    def finding(level: Level, what: str, remedy: str, about: Certificate = leaf) -> Finding:
        return Finding(level, pair.file, subject_of(about), what, remedy, use.where)

    for certificate in pair.chain:
        # A root in the file is not sent, so its dates and its key do not matter.
        unsent = certificate is not leaf and is_self_signed(certificate)
        for level, what, remedy in date_problems(certificate, now):
            found = finding(
                Level.WARNING if unsent else level,
                what,
                "remove it from the file" if unsent else remedy,
                certificate,
            )
            yield replace(found, temporary=not unsent)
        if not unsent and (weakness := weakness_of(certificate)):
            level = Level.ERROR if weakness.refused else Level.WARNING
            yield finding(level, weakness.what, _STRONG_KEY, certificate)
        if not unsent and (broken := extension_error(certificate)):
            what = f"{broken}: every peer that uses OpenSSL refuses the connection"
            yield finding(Level.ERROR, what, REISSUE, certificate)
    yield from _lint_purpose(use, pair, role)
    for check in (lint_chain, lint_name_constraints):
        yield from (finding(*each) for each in check(pair.chain, role, known))
    anchors = (*known.above(pair.chain), *filter(is_self_signed, rest))
    if not verify(leaf, rest, anchors, role=role) and (
        strict := verify(leaf, rest, anchors, role=role, strict=True)
    ):
        what = (
            "would be refused by peers that verify strictly (X509_STRICT):"
            f" {strict.text}{if_other(strict, leaf)}"
        )
        yield finding(Level.INFO, what, "nothing needs to be done for peers with default settings")


def lint_passphrase(use: PairUse, pair: KeyPair) -> Iterator[Finding]:
    """Report a passphrase that the key does not need."""
    if use.files.passphrase is not None and not pair.encrypted and pair.provider is None:
        what = f"has no effect: the private key in {shown(use.files.private_key)} is not encrypted"
        remedy = "remove key_passphrase_file, or encrypt the key with: openssl pkey -aes256"
        yield Finding(Level.WARNING, "", "", what, remedy, passphrase_key(use.where))


def lint_provider(use: PairUse, pair: KeyPair) -> Iterator[Finding]:
    """Say what cannot be checked about a key in a device."""
    if pair.provider is not None:
        what = (
            "is a key of an OpenSSL provider: each process of the relay loads it, as its own user,"
            " which cannot be tried here"
        )
        yield Finding(Level.INFO, shown(use.files.private_key), "", what, "", use.key_where)


def lint_key_file(use: PairUse) -> Iterator[Finding]:
    """Report a key that everybody may read."""
    try:
        mode = use.files.private_key.stat().st_mode & 0o7777
    except OSError:  # the loader reports a file that cannot be read
        return
    if mode & 0o004:
        yield Finding(
            Level.WARNING,
            shown(use.files.private_key),
            "",
            f"every user of this machine can read this private key (mode {mode:04o})",
            f"chmod 600 {use.files.private_key}",
            use.key_where,
        )


def lint_key_kind(use: PairUse, pair: KeyPair) -> Iterator[Finding]:
    """Check that peers can handshake with this kind of key under these settings."""
    to_servers = bool(use.pool) and use.min_version == "TLSv1.2"
    if problem := key_problem(pair.leaf, use.groups, to_servers=to_servers):
        level = Level.ERROR if problem.refused else Level.WARNING
        subject = subject_of(pair.leaf)
        yield Finding(level, pair.file, subject, problem.what, problem.remedy, use.where)


def lint_route_names(use: PairUse, pair: KeyPair) -> Iterator[Finding]:
    """Check that a route's certificate has the names of the route."""
    for what, remedy in _name_problems(pair.leaf, use.sni):
        subject = subject_of(pair.leaf)
        yield Finding(Level.WARNING, pair.file, subject, what, remedy, use.where)


def lint_machine_issuer(use: PairUse, pair: KeyPair, backend_ca: Verifier) -> Iterator[Finding]:
    """Check whether the pool's backend_ca would accept the machine certificate.

    Backends and gateways commonly share a CA, so a difference may be a mistake.
    """
    if backend_ca.verify(pair.leaf, pair.chain[1:]):
        issuer = quoted(pair.leaf.issuer.rfc4514_string())
        what = (
            f"is not issued by a CA of this pool's backend_ca: its issuer is {issuer};"
            " backends that trust only their own CA will refuse it"
        )
        remedy = "nothing needs to be done if the backends trust another CA for clients on purpose"
        yield Finding(Level.INFO, pair.file, subject_of(pair.leaf), what, remedy, use.where)


def _lint_purpose(use: PairUse, pair: KeyPair, role: Role) -> Iterator[Finding]:
    leaf = pair.leaf
    if failure := verify(leaf, trusted=(leaf,), role=role, partial=True):
        yield Finding(
            Level.ERROR,
            pair.file,
            subject_of(leaf),
            f"cannot serve as a {role}: {_why_wrong_purpose(leaf, role, failure)}",
            f"issue a certificate with extendedKeyUsage {NEEDED_EKU[role]}",
            use.where,
        )
    elif (usage := key_usage_of(leaf)) is not None and not usage.digital_signature:
        yield Finding(
            Level.WARNING,
            pair.file,
            subject_of(leaf),
            "its keyUsage lacks digitalSignature, which TLS 1.3 and every ECDHE cipher need",
            "issue it with keyUsage digitalSignature",
            use.where,
        )


def _why_wrong_purpose(leaf: Certificate, role: Role, failure: VerifyFailure) -> str:
    ekus = ekus_of(leaf)
    if ekus is not None and NEEDED_EKU[role] not in ekus:
        return f"its extendedKeyUsage has only {', '.join(ekus)}"
    usage = key_usage_of(leaf)
    if usage is not None and not (
        usage.digital_signature
        or usage.key_agreement
        or (role is Role.SERVER and usage.key_encipherment)
    ):
        return "its keyUsage lacks digitalSignature"
    return failure.text


def _name_problems(leaf: Certificate, patterns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Names of the route that the certificate lacks.

    A wildcard covers one label, and the common name does not count (RFC 6125, 6.4).
    """
    names = leaf.alt_names
    if names is None and (leaf.has_extension(SUBJECT_ALT_NAME) or not leaf.readable):
        what = "has names that the relay cannot read, so it cannot compare them with the route's"
        yield what, REISSUE
        return
    carried = {name.lower() for name in names.dns} if names else set()
    if not carried and not (names and names.ip):
        what = (
            "carries no name: it has no subjectAltName with a DNS name or an IP address,"
            " and clients ignore the common name"
        )
        yield what, "issue it with the names that clients connect to"
        return
    if missing := missing_names(leaf, patterns):
        more = f" and {len(missing) - _MAX_NAMES} more" if len(missing) > _MAX_NAMES else ""
        what = (
            f"does not carry {', '.join(missing[:_MAX_NAMES])}{more} of the route's sni:"
            " clients that connect by that name will refuse it"
        )
        yield what, "issue it with every name of the route, or give those names their own route"


def missing_names(leaf: Certificate, patterns: Iterable[str]) -> list[str]:
    """The names that the certificate does not carry; a wildcard covers one label."""
    names = leaf.alt_names
    carried = {name.lower() for name in names.dns} if names else set()
    return [
        pattern
        for pattern in patterns
        if pattern.lower() not in carried
        and f"*.{pattern.lower().partition('.')[2]}" not in carried
    ]

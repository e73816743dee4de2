"""Judges every configured certificate for its task, as one would by hand with `openssl x509 -purpose`, and says what to do.

Where OpenSSL's opinion matters it is OpenSSL that is asked (`tls.certificates.openssl`), so that a certificate is refused here if and only if
peers that use it would refuse it in the handshake; the words that explain it are ours.

Never: raises for a bad file, looks at a certificate's private key beyond the mode of its file, or changes anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from relay.config.model import Config
from relay.errors import ConfigError
from relay.files import Files
from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.extensions import NEEDED_EKU, ekus_of, is_ca, key_usage_of, subject_of
from relay.tls.certificates.findings import (
    REISSUE,
    Certificates,
    Finding,
    Level,
    blame,
    dates,
    file_finding,
    fine,
    merge_findings,
    quoted,
)
from relay.tls.certificates.key_kinds import key_problem
from relay.tls.certificates.lint_cas import lint_bundle, lint_names, usable_cas
from relay.tls.certificates.name_constraints import judge_constraints
from relay.tls.certificates.names import SUBJECT_ALT_NAME
from relay.tls.certificates.openssl import (
    NAME_CONSTRAINT_CODES,
    Issuers,
    Role,
    Verifier,
    VerifyFailure,
    extension_error,
    is_self_signed,
    issued_by,
    verify,
    weakness_of,
)
from relay.tls.certificates.pem import (
    AuthorityUse,
    KeyPair,
    PairUse,
    authorities_of,
    load_authorities,
    load_key_pair,
    name_of,
    pairs_of,
)
from relay.tls.certificates.validity import period_of_cas, period_of_pair
from relay.tls.certificates.validity_periods import ValidityPeriod


class LintResult(NamedTuple):
    """What is to be said, and when what each key of the configuration names is valid."""

    findings: list[Finding]
    periods: dict[str, ValidityPeriod]


def lint(config: Config, now: datetime, files: Files | None = None) -> list[Finding]:
    """What `lint_with_periods` finds."""
    return lint_with_periods(config, now, files).findings


def lint_with_periods(config: Config, now: datetime, files: Files | None = None) -> LintResult:
    """Everything worth saying about every certificate, errors first; a certificate without error or warning has one INFO line. `now` is aware.

    A file that is used in many places is read, parsed and judged once.
    """
    periods: dict[str, ValidityPeriod] = {}
    judged = _Linter(files or Files())
    pairs: list[tuple[PairUse, KeyPair]] = []
    bundles: list[tuple[AuthorityUse, Certificates]] = []
    findings: list[Finding] = []
    for pair_use in pairs_of(config):
        try:
            pairs.append((pair_use, judged.pair(pair_use)))
        except ConfigError as error:
            findings += map(file_finding, error.problems)
    for use in authorities_of(config):
        try:
            bundles.append((use, judged.bundle(use)))
        except ConfigError as error:
            findings += map(file_finding, error.problems)
    known = Issuers(certificate for _, bundle in bundles for certificate in bundle)
    of_pools = {use.pool: use for use, _ in bundles if use.pool}
    for pair_use, pair in pairs:
        judged.lint_pair(pair_use, pair, known, now)
        periods[pair_use.where] = period_of_pair(pair_use.where, pair)
        if pair_use.pool in of_pools:
            judged.lint_kinship(pair_use, pair, of_pools[pair_use.pool])
    for use, bundle in bundles:
        key = ("bundle", use.file, bool(use.pool))
        judged.note(key, use.where, partial(lint_bundle, use, bundle, now))
        if use.names_sent:
            judged.note(("names", use.file), use.where, partial(lint_names, use, bundle))
        if key not in judged.periods:
            usable = usable_cas(use, bundle, now)
            judged.periods[key] = period_of_cas(use.where, use.file, usable, now)
        periods[use.where] = replace(judged.periods[key], where=use.where)
    return LintResult(merge_findings([*findings, *judged.findings()]), periods)


class _Linter:
    """Remembers what was read, parsed and said of each file, and where the configuration names it."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._pairs: dict[tuple[Path, Path], KeyPair] = {}
        self._bundles: dict[Path, Certificates] = {}
        self._trusts: dict[Path, Verifier] = {}
        self._said: dict[tuple[object, ...], list[Finding]] = {}
        self.periods: dict[tuple[object, ...], ValidityPeriod] = {}
        self._places: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)

    def pair(self, use: PairUse) -> KeyPair:
        """A certificate with its key. Raises ConfigError."""
        key = use.certificate, use.private_key
        if key not in self._pairs:
            self._pairs[key] = load_key_pair(use.where, *key, self._files)
        return self._pairs[key]

    def bundle(self, use: AuthorityUse) -> Certificates:
        """The CAs of a file. Raises ConfigError."""
        if use.file not in self._bundles:
            self._bundles[use.file] = load_authorities(use.where, use.file, self._files)
        return self._bundles[use.file]

    def note(
        self, key: tuple[object, ...], where: str, say: Callable[[], Iterable[Finding]]
    ) -> list[Finding]:
        """What there is to say under this key, said when it is first asked for."""
        if key not in self._said:
            self._said[key] = list(say())
        self._places[key].append(where)
        return self._said[key]

    def findings(self) -> Iterator[Finding]:
        """Everything that was said, with all its places."""
        for key, said in self._said.items():
            where = ", ".join(self._places[key])
            yield from (replace(finding, where=where) for finding in said)

    def lint_pair(self, use: PairUse, pair: KeyPair, known: Issuers, now: datetime) -> None:
        """A certificate we show, and what it is shown for: names, and peers of these settings."""
        key = (use.certificate, use.private_key, bool(use.pool))
        said = self.note(key, use.where, partial(_judge_pair, use, pair, known, now))
        of_place = [*_judge_key(use, pair), *(() if use.pool else _judge_names(use, pair))]
        if of_place:
            place = (*key, use.sni, use.groups, use.min_version)
            self.note(place, use.where, lambda: of_place)
        of_fine = partial(fine, (*said, *of_place), use.where, pair.file, pair.chain)
        self.note((*key, bool(of_place)), use.where, of_fine)

    def lint_kinship(self, use: PairUse, pair: KeyPair, other: AuthorityUse) -> None:
        """A machine certificate and the CAs of the backends."""
        trust = self._trusts.get(other.file)
        if trust is None:
            trust = self._trusts[other.file] = Verifier(self._bundles[other.file])
        key = (use.certificate, use.private_key, other.file)
        self.note(key, use.where, partial(_judge_kinship, use, pair, trust))


# A certificate we show.


def _judge_pair(use: PairUse, pair: KeyPair, known: Issuers, now: datetime) -> Iterator[Finding]:
    role = Role.CLIENT if use.pool else Role.SERVER
    leaf, rest = pair.chain[0], pair.chain[1:]

    def finding(level: Level, what: str, remedy: str, about: Certificate = leaf) -> Finding:
        return Finding(level, pair.file, subject_of(about), what, remedy, use.where)

    for certificate in pair.chain:
        # A root in the file is not sent, so its end does not matter to anybody.
        unsent = certificate is not leaf and is_self_signed(certificate)
        for level, what, remedy in dates(certificate, now):
            said = finding(
                Level.WARNING if unsent else level,
                what,
                "remove it from the file" if unsent else remedy,
                certificate,
            )
            yield replace(said, temporary=not unsent)
        if not unsent and (weakness := weakness_of(certificate)):
            yield finding(
                Level.ERROR if weakness.refused else Level.WARNING,
                weakness.what,
                "issue it with an EC P-256 key or RSA of 2048 bits or more, signed with SHA-256",
                certificate,
            )
        if not unsent and (broken := extension_error(certificate)):
            what = f"{broken}: every peer that uses OpenSSL refuses the connection"
            yield finding(Level.ERROR, what, REISSUE, certificate)
    if refusal := verify(leaf, trusted=(leaf,), role=role, partial=True):
        yield finding(
            Level.ERROR,
            f"cannot serve as a {role}: {_why_wrong_purpose(leaf, role, refusal)}",
            f"issue a certificate with extendedKeyUsage {NEEDED_EKU[role]}",
        )
    elif (usage := key_usage_of(leaf)) is not None and not usage.digital_signature:
        yield finding(
            Level.WARNING,
            "its keyUsage lacks digitalSignature, which TLS 1.3 and every ECDHE cipher use it for",
            "issue it with keyUsage digitalSignature",
        )
    for judge_chain in (_chain_findings, judge_constraints):
        yield from (finding(*each) for each in judge_chain(pair.chain, role, known))
    anchors = (*known.above(pair.chain), *filter(is_self_signed, rest))
    if not verify(leaf, rest, anchors, role=role) and (
        strict := verify(leaf, rest, anchors, role=role, strict=True)
    ):
        what = (
            f"would be refused by peers that verify strictly (X509_STRICT): {strict.words}"
            + blame(strict, leaf)
        )
        yield finding(Level.INFO, what, "nothing needs to be done for peers with default settings")
    yield from _judge_mode(use)


def _chain_findings(
    chain: Certificates, role: Role, known: Issuers
) -> Iterator[tuple[Level, str, str, Certificate]]:
    for below, above in pairwise(chain):
        if not issued_by(below, above):
            what = f"is followed by {quoted(subject_of(above))}, which did not issue it; its issuer is {quoted(name_of(below.issuer))}"
            yield (
                Level.WARNING,
                what,
                "order the file: the leaf, its issuer, that one's issuer; remove what does not belong to the chain",
                below,
            )
            return
    last = chain[-1]
    if is_self_signed(last):
        if len(chain) == 1:
            yield (
                Level.WARNING,
                "is self-signed: each peer must be given this very certificate to trust it",
                "issue it by a CA the peers trust",
                last,
            )
            return
    elif not (issuers := known.of(last)):
        what = f"the chain ends here: its issuer {quoted(name_of(last.issuer))} is neither in this file nor in any configured CA file"
        # A file that ends with a CA is what public CAs hand out, their root is in the peers' hands; a lone leaf is the usual mistake.
        level = Level.INFO if len(chain) > 1 and is_ca(last) else Level.WARNING
        yield (
            level,
            what,
            "if that is an intermediate, append it to the file; a root need not be there",
            last,
        )
        return
    elif not any(map(is_self_signed, issuers)):
        what = f"its issuer {quoted(name_of(last.issuer))} is an intermediate that is not in this file, so peers that know only the root will refuse it"
        yield Level.WARNING, what, "append the intermediate certificates to the file", last
    anchors = (*known.above(chain), *filter(is_self_signed, chain))
    refusal = verify(chain[0], chain[1:], anchors, role=role)
    if (
        refusal and refusal.code not in NAME_CONSTRAINT_CODES and refusal.certificate != chain[0]
    ):  # what is wrong with the leaf itself was said
        yield (
            Level.WARNING,
            f"OpenSSL would refuse this chain: {refusal.words}",
            "issue this CA certificate anew, or leave it out of the path",
            refusal.certificate,
        )


def _judge_key(use: PairUse, pair: KeyPair) -> Iterator[Finding]:
    to_servers = bool(use.pool) and use.min_version == "TLSv1.2"
    if unfit := key_problem(pair.leaf, use.groups, to_servers=to_servers):
        level = Level.ERROR if unfit.refused else Level.WARNING
        subject = subject_of(pair.leaf)
        yield Finding(level, pair.file, subject, unfit.what, unfit.remedy, use.where)


def _judge_names(use: PairUse, pair: KeyPair) -> Iterator[Finding]:
    subject = subject_of(pair.leaf)
    for what, remedy in _uncovered(pair.leaf, use.sni):
        yield Finding(Level.WARNING, pair.file, subject, what, remedy, use.where)


def _uncovered(leaf: Certificate, patterns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Names a route answers to and its certificate does not carry (RFC 6125, 6.4: a wildcard covers one label; the common name counts for nothing)."""
    names = leaf.alt_names
    if names is None and (leaf.has_extension(SUBJECT_ALT_NAME) or not leaf.readable):
        yield "has names that the relay cannot read: it cannot tell whether they fit", REISSUE
        return
    carried = {name.lower() for name in names.dns} if names else set()
    if not carried and not (names and names.ip):
        yield (
            "carries no name: it has no subjectAltName with a DNS name or an IP address, and clients do not look at the common name",
            "issue it with the names clients connect to",
        )
        return
    missing = [
        pattern
        for pattern in patterns
        if pattern.lower() not in carried
        and f"*.{pattern.lower().partition('.')[2]}" not in carried
    ]
    if missing:
        shown = ", ".join(missing[:5]) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        yield (
            f"does not carry {shown} of the route's sni, so clients that connect by that name will refuse it",
            "issue it with every name of the route, or give those names their own route",
        )


def _judge_mode(use: PairUse) -> Iterator[Finding]:
    try:
        mode = use.private_key.stat().st_mode & 0o7777
    except OSError:  # it was readable a moment ago; the loader says so when it is not
        return
    if mode & 0o004:
        yield Finding(
            Level.WARNING,
            str(use.private_key),
            "",
            f"every user of this machine can read this private key (mode {mode:04o})",
            f"chmod 600 {use.private_key}",
            use.where,
        )


def _judge_kinship(use: PairUse, pair: KeyPair, backend_ca: Verifier) -> Iterator[Finding]:
    """Backends and gateways commonly share a CA: would this pool's backend_ca accept the machine certificate?"""
    if backend_ca.verify(pair.leaf, pair.chain[1:]):
        what = f"does not lead to this pool's backend_ca, it is issued by {quoted(name_of(pair.leaf.issuer))}; backends that trust only their own CA will refuse it"
        yield Finding(
            Level.INFO,
            pair.file,
            subject_of(pair.leaf),
            what,
            "nothing, if the backends' client CA is another one on purpose",
            use.where,
        )


def _why_wrong_purpose(leaf: Certificate, role: Role, refusal: VerifyFailure) -> str:
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
    return refusal.words

"""Checks whether every configured certificate suits its use.

This does what an operator would do by hand with `openssl x509 -purpose`, and gives a
remedy for each problem. Where OpenSSL's decision matters, OpenSSL is asked
(`tls.certificates.openssl`): an error means that peers with OpenSSL would refuse the
certificate in the handshake.

Never: raises for a bad file, looks at a private key beyond its file's mode, or changes
anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from relay.config.key_path import routes_of
from relay.config.model import Config
from relay.errors import ConfigError
from relay.files import Files
from relay.tls.certificates.configured import (
    AuthorityUse,
    PairFiles,
    PairUse,
    authorities_of,
    pairs_of,
)
from relay.tls.certificates.findings import (
    Certificates,
    Finding,
    file_finding,
    info_lines,
    merge_findings,
)
from relay.tls.certificates.lint_access import lint_access
from relay.tls.certificates.lint_cas import lint_bundle, lint_names, usable_cas
from relay.tls.certificates.lint_key_pairs import (
    lint_key_file,
    lint_key_kind,
    lint_key_pair,
    lint_machine_issuer,
    lint_passphrase,
    lint_provider,
    lint_route_names,
)
from relay.tls.certificates.openssl import Issuers, Verifier
from relay.tls.certificates.passphrase import passphrase_key
from relay.tls.certificates.pem import KeyPair, load_authorities, load_key_pair
from relay.tls.certificates.validity import period_of_cas, period_of_pair
from relay.tls.certificates.validity_periods import ValidityPeriod


class LintResult(NamedTuple):
    """The findings, and the validity period behind each configuration key."""

    findings: list[Finding]
    periods: dict[str, ValidityPeriod]


def lint(config: Config, now: datetime, files: Files | None = None) -> list[Finding]:
    """The findings of `lint_with_periods`."""
    return lint_with_periods(config, now, files).findings


def lint_with_periods(
    config: Config,
    now: datetime,
    files: Files | None = None,
    only: Container[str] | None = None,
) -> LintResult:
    """Check every configured certificate; errors come first. `now` has a time zone.

    A certificate without error or warning gets one INFO line. A file that several keys
    name is read, parsed and checked once. With `only`, what these configuration keys
    name is checked; other CA files are read, but a fault of them is not reported.
    """
    periods: dict[str, ValidityPeriod] = {}
    linter = _Linter(files or Files())
    pairs: list[tuple[PairUse, KeyPair]] = []
    bundles: list[tuple[AuthorityUse, Certificates]] = []
    findings: list[Finding] = []
    for pair_use in pairs_of(config):
        if only is not None and pair_use.where not in only:
            continue
        try:
            pairs.append((pair_use, linter.pair(pair_use)))
        except ConfigError as error:
            findings += map(file_finding, error.problems)
    for use in authorities_of(config):
        try:
            bundles.append((use, linter.bundle(use)))
        except ConfigError as error:
            if only is None or use.where in only:
                findings += map(file_finding, error.problems)
    known = Issuers(certificate for _, bundle in bundles for certificate in bundle)
    backend_cas = {use.pool: use for use, _ in bundles if use.pool}
    for pair_use, pair in pairs:
        linter.lint_pair(pair_use, pair, known, now)
        periods[pair_use.where] = period_of_pair(pair_use.where, pair)
        if pair_use.pool in backend_cas:
            linter.lint_machine_issuer(pair_use, pair, backend_cas[pair_use.pool])
    cas_of = {use.where: bundle for use, bundle in bundles}
    for where, _, route in routes_of(config):
        findings += lint_access(where, route, cas_of.get(f"{where}.client_ca", ()))
    for use, bundle in bundles:
        if only is not None and use.where not in only:
            continue
        periods[use.where] = linter.lint_bundle(use, bundle, now)
    return LintResult(merge_findings([*findings, *linter.findings()]), periods)


class _Linter:
    """Remembers what was read, parsed and found, and which keys name each file."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._pairs: dict[PairFiles, KeyPair] = {}
        self._bundles: dict[Path, Certificates] = {}
        self._verifiers: dict[tuple[Path, bool], Verifier] = {}
        self._found: dict[tuple[object, ...], list[Finding]] = {}
        self._periods: dict[tuple[object, ...], ValidityPeriod] = {}
        self._wheres: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)

    def pair(self, use: PairUse) -> KeyPair:
        """A certificate with its key. Raises ConfigError."""
        if use.files not in self._pairs:
            certificate, private_key, passphrase = use.files
            self._pairs[use.files] = load_key_pair(
                use.where, certificate, private_key, self._files, passphrase
            )
        return self._pairs[use.files]

    def bundle(self, use: AuthorityUse) -> Certificates:
        """The CAs of a file. Raises ConfigError."""
        if use.file not in self._bundles:
            self._bundles[use.file] = load_authorities(use.where, use.file, self._files)
        return self._bundles[use.file]

    def findings(self) -> Iterator[Finding]:
        """All findings, each with every configuration key that it applies to."""
        for key, found in self._found.items():
            where = ", ".join(self._wheres[key])
            yield from (replace(finding, where=where) for finding in found)

    def lint_pair(self, use: PairUse, pair: KeyPair, known: Issuers, now: datetime) -> None:
        """Check a certificate that the relay presents, alone and with its settings."""
        key = (use.files, bool(use.pool))
        found = self._once(key, use.where, partial(lint_key_pair, use, pair, known, now))
        names = () if use.pool else lint_route_names(use, pair)
        by_settings = [*lint_key_kind(use, pair), *names]
        if by_settings:
            settings = (*key, use.sni, use.groups, use.min_version)
            self._once(settings, use.where, lambda: by_settings)
        passphrase = partial(lint_passphrase, use, pair)
        self._once(("passphrase", use.files), passphrase_key(use.where), passphrase)
        self._once(("provider", use.files), use.key_where, partial(lint_provider, use, pair))
        self._once(("key file", use.files), use.key_where, partial(lint_key_file, use))
        lines = partial(info_lines, (*found, *by_settings), use.where, pair.file, pair.chain)
        self._once((*key, bool(by_settings)), use.where, lines)

    def lint_machine_issuer(self, use: PairUse, pair: KeyPair, backend_ca: AuthorityUse) -> None:
        """Compare a machine certificate with the CAs of the pool's backends."""
        ends = backend_ca.file, backend_ca.rules.partial_chain
        verifier = self._verifiers.get(ends)
        if verifier is None:
            bundle = self._bundles[backend_ca.file]
            verifier = self._verifiers[ends] = Verifier(bundle, partial=ends[1])
        key = (use.files, *ends)
        self._once(key, use.where, partial(lint_machine_issuer, use, pair, verifier))

    def lint_bundle(self, use: AuthorityUse, bundle: Certificates, now: datetime) -> ValidityPeriod:
        """Check the CAs of a file."""
        key = ("bundle", use.file, bool(use.pool), use.rules)
        self._once(key, use.where, partial(lint_bundle, use, bundle, now))
        if use.names_sent:
            self._once(("names", use.file), use.where, partial(lint_names, use, bundle))
        if key not in self._periods:
            usable = usable_cas(use, bundle, now)
            self._periods[key] = period_of_cas(
                use.where, use.file, usable, now, partial=use.rules.partial_chain
            )
        return replace(self._periods[key], where=use.where)

    def _once(
        self, key: tuple[object, ...], where: str, check: Callable[[], Iterable[Finding]]
    ) -> list[Finding]:
        """The findings of a check. For each key it runs once, whatever `where` is."""
        if key not in self._found:
            self._found[key] = list(check())
        self._wheres[key].append(where)
        return self._found[key]

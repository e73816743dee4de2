"""Reads and checks renewed files: in the child that inspects files.

The child is a copy of the supervisor, so it has the certificates in use. It compares
the files with them, checks the sets that have changed, and tries the good ones with its
own copy of the TLS contexts. A set with any fault keeps what is in use; other sets do
not wait for it, nor does a revocation list for another one.

Never: changes anything outside the child.
Next: `relay.tls.renewal.renew_steps`
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from relay.config.model import Config
from relay.errors import ConfigError, Problem
from relay.files import Files, Fingerprint
from relay.supervisor.known_cas import known_issuers, lost_cas
from relay.supervisor.list_renewal import RenewedLists, renew_lists
from relay.supervisor.list_sets import all_sets, name_of
from relay.supervisor.privileges import Identity
from relay.supervisor.set_reading import (
    Digests,
    Reading,
    other_files,
    pending_files,
    read_steadily,
)
from relay.tls.certificates.configured import pairs_of
from relay.tls.certificates.file_sets import FileSet, SetKey
from relay.tls.certificates.findings import Finding, Level, as_problem
from relay.tls.certificates.inventory import CertificateInfo, certificates_in
from relay.tls.certificates.lint import LintResult, lint_with_periods
from relay.tls.certificates.pem import load_key_pair
from relay.tls.certificates.succession import reasons_to_keep, warnings_of
from relay.tls.generation import Generation
from relay.tls.lint_key_suites import suites_lost
from relay.tls.lint_staples import reasons_to_keep as reasons_to_keep_response
from relay.tls.renewal import Renewal, renew
from relay.tls.revocation.revoked_set import RevokedSet

_TRIED = "a canary tries, or has refused, this file: what is in use stays in use"
_TRIED_REMEDY = "write another file, or use this one with: relay reload"
_INCOMPLETE = "it is read again soon; write a new file and rename it into place"


@dataclass(frozen=True, slots=True)
class RefusedSet:
    """A set that keeps what is in use, and why."""

    key: SetKey
    name: str
    files: tuple[Path, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Renewed:
    """What was found: sets to renew, sets with a fault, and sets without a change.

    `digests` are of all sets to renew. Of the `partial` sets, which have faults, only
    some revocation lists are renewed.
    """

    renewal: Renewal = field(repr=False)
    sets: tuple[FileSet, ...]
    partial: tuple[FileSet, ...]
    names: tuple[str, ...]  # of the files of these sets that have other bytes
    revoked: Mapping[str, bytes] = field(repr=False)  # for `Renewal.revoked`
    refused: tuple[RefusedSet, ...]
    unchanged: frozenset[SetKey]
    warnings: tuple[Problem, ...]
    digests: Digests
    fingerprints: Mapping[Path, Fingerprint]
    certificates: tuple[CertificateInfo, ...]
    description: bytes = b""  # see `relay.supervisor.prepared.Prepared`


@dataclass(frozen=True, slots=True)
class InUse:
    """What the supervisor uses now: live objects, with the digests of their files."""

    generation: Generation
    digests: Digests
    certificates: tuple[CertificateInfo, ...]
    withheld: Digests = field(default_factory=dict)  # of sets that only a canary has used


@dataclass(frozen=True, slots=True)
class Running:
    """What runs now: the files in use, and what else a reload reads anew."""

    in_use: InUse
    others: Mapping[tuple[Path, int], bytes]  # digests of all other files
    identity: Identity
    slots: int
    password: str = field(repr=False)

    @property
    def config(self) -> Config:
        """Its configuration."""
        return self.in_use.generation.config


def check_renewal(in_use: InUse, now: datetime, only: Container[SetKey] | None = None) -> Renewed:
    """Look for renewed files, in all sets or only in these.

    Only an operator who looks for all gets the files that are withheld.
    """
    config = in_use.generation.config
    every = all_sets(config)
    sets = [each for each in every if only is None or each.key in only]
    # Lists are looked at with the CAs that they belong to.
    cas = {each.files[0] for each in sets if each.kind == "cas"}
    sets += [
        each for each in every if each.kind == "crl" and each.files[0] in cas and each not in sets
    ]
    reading = read_steadily(sets, in_use.digests)
    cas = {each.files[0] for each in reading.changed if each.kind == "cas"}
    changed = [
        each
        for each in sets
        if each in reading.changed or (each.kind == "crl" and each.files[0] in cas)
    ]
    reading = replace(reading, changed=changed)
    found = _check(in_use, now, reading, in_use.withheld if only is not None else {})
    others = {
        each.key: other_files(each, in_use.digests, reading.digests) for each in reading.changed
    }
    good = [each for each in reading.changed if each.key not in found.problems]
    named = {each.files[0]: each.wheres[0] for each in good if each.kind not in {"crl", "response"}}
    renewed = {str(file) for file in named}
    partial, buffers = found.partial(reading), found.lists.buffers
    return Renewed(
        renewal=_renewal_of([*good, *partial], reading.files, found),
        sets=tuple(good),
        partial=tuple(partial),
        names=tuple(
            dict.fromkeys(name_of(config, path) for each in good for path in others[each.key])
        ),
        revoked={
            name: buffer
            for each in (*good, *partial)
            for name, buffer in buffers.get(each.key, {}).items()
        },
        refused=tuple(
            RefusedSet(each.key, str(each), pending_files(each, others[each.key]), tuple(problems))
            for each in reading.changed
            if (problems := found.problems.get(each.key))
        ),
        unchanged=frozenset(each.key for each in sets if each not in reading.changed),
        warnings=tuple(found.warnings),
        digests={each.key: reading.digests[each.key] for each in good},
        fingerprints={
            path: reading.files.fingerprints[path]
            for each in good
            for path in each.files
            if path in reading.files.fingerprints
        },
        certificates=(
            *(each for each in in_use.certificates if each.file not in renewed),
            *certificates_in(named, reading.files),
        ),
    )


@dataclass(slots=True)
class _Checked:
    """What is wrong with each set that must not be used, and what is only worse."""

    lint: LintResult
    lists: RenewedLists = field(default_factory=RenewedLists)
    problems: dict[SetKey, list[Problem]] = field(default_factory=dict)
    warnings: list[Problem] = field(default_factory=list)

    def refuse(self, key: SetKey, problems: Iterable[Problem]) -> None:
        """Add to the problems of a set, if there are any."""
        for problem in problems:
            self.problems.setdefault(key, []).append(problem)

    def partial(self, reading: Reading) -> list[FileSet]:
        """The sets with a fault of which some revocation lists can be used."""
        keys = self.problems.keys() & self.lists.buffers.keys()
        return [each for each in reading.changed if each.key in keys]


def _check(in_use: InUse, now: datetime, reading: Reading, withheld: Digests) -> _Checked:
    config = in_use.generation.config
    wheres = {where for each in reading.changed for where in each.wheres}
    lint = lint_with_periods(config, now, reading.files, wheres)
    checked = _Checked(lint)
    for each in reading.changed:
        checked.refuse(each.key, _unsteady_problems(each, reading.unsteady))
        if reading.digests[each.key] == withheld.get(each.key):
            checked.refuse(each.key, [Problem(each.wheres[0], _TRIED, _TRIED_REMEDY)])
        if each.kind == "response":
            reasons = reasons_to_keep_response(config, each.files[0], now, reading.files)
            checked.refuse(each.key, reasons)
        for finding in lint.findings:
            if finding.level is not Level.INFO and _concerns(finding, each):
                if finding.level is Level.ERROR:
                    checked.refuse(each.key, [as_problem(finding)])
                elif not finding.temporary:
                    # A certificate that lives for days "expires soon" at each renewal.
                    checked.warnings.append(as_problem(finding))
    _compare(in_use, now, reading, checked)
    _renew_lists(in_use, now, reading, checked)
    _try_out(in_use, reading, checked)
    return checked


def _renew_lists(in_use: InUse, now: datetime, reading: Reading, checked: _Checked) -> None:
    """Work out the revoked certificates of changed lists, or of changed CAs."""
    bad = checked.problems
    keys = {each.key for each in reading.changed if each.kind == "crl" and each.key not in bad}
    refused = {path for kind, paths in bad if kind == "cas" for path in paths if path is not None}
    found = renew_lists(in_use.generation, keys, reading.files, refused, now)
    for key, problems in found.problems.items():
        checked.refuse(key, problems)
    checked.warnings += found.warnings
    checked.lists = found


def _unsteady_problems(each: FileSet, unsteady: Collection[Path]) -> Iterator[Problem]:
    for path in each.files:
        if path in unsteady:
            yield Problem(each.wheres[0], f"{path} is being written", _INCOMPLETE)


def _concerns(finding: Finding, each: FileSet) -> bool:
    return not each.key_paths.isdisjoint(finding.where.split(", "))


def _compare(in_use: InUse, now: datetime, reading: Reading, checked: _Checked) -> None:
    """Compare renewed certificates with those in use."""
    config, files = in_use.generation.config, reading.files
    pairs = {each.key: each for each in reading.changed if each.kind == "pair"}
    before, known = in_use.generation.pairs(), known_issuers(in_use.generation, files)
    cas = [each for each in reading.changed if each.kind == "cas"]
    good = [each for each in cas if each.key not in checked.problems]
    checked.warnings += lost_cas(in_use.generation, good, files)
    for use in pairs_of(config):
        each = pairs.get(("pair", tuple(use.files)))
        old = before.get(use.where)
        if each is None or old is None or each.key in checked.problems:
            continue
        certificate, key, passphrase = use.files
        new = load_key_pair(use.where, certificate, key, files, passphrase)
        worse = [*reasons_to_keep(use, old, new, known), *suites_lost(use, old, new)]
        if old.leaf.not_valid_after_utc > now:
            checked.refuse(each.key, worse)
        else:  # what is in use serves nobody
            checked.warnings += worse
        checked.warnings += warnings_of(use, old, new)


def _try_out(in_use: InUse, reading: Reading, checked: _Checked) -> None:
    """Build the contexts, as every process will. They are this child's own."""
    good = [each for each in reading.changed if each.key not in checked.problems]
    good += checked.partial(reading)
    try:
        _try(in_use, good, reading, checked)
    except ConfigError:
        for each in good:
            try:
                _try(in_use, [each], reading, checked)
            except ConfigError as error:
                checked.refuse(each.key, error.problems)
                checked.lists.buffers.pop(each.key, None)


def _try(in_use: InUse, sets: Collection[FileSet], reading: Reading, checked: _Checked) -> None:
    buffers = [checked.lists.buffers.get(each.key, {}) for each in sets]
    revoked = {name: RevokedSet(buffer) for each in buffers for name, buffer in each.items()}
    renew(in_use.generation, _renewal_of(sets, reading.files, checked), revoked)


def _renewal_of(sets: Collection[FileSet], files: Files, checked: _Checked) -> Renewal:
    paths = {path for each in sets if each.kind != "crl" for path in each.files}
    wheres = {where for each in sets for where in each.wheres}
    names = [name for each in sets for name in checked.lists.buffers.get(each.key, ())]
    lint = checked.lint
    return Renewal(
        contents={key: read for key, read in files.contents.items() if key[0] in paths},
        pairs=frozenset(each.pair[:2] for each in sets if each.kind == "pair"),
        cas=frozenset(each.files[0] for each in sets if each.kind == "cas"),
        responses=frozenset(each.files[0] for each in sets if each.kind == "response"),
        periods={where: each for where, each in lint.periods.items() if where in wheres},
        revoked={name: index for index, name in enumerate(names)},
    )

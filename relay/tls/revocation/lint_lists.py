"""Checks the revocation lists of a configuration, and builds its trust sets.

A CA without a list is an error, not a surprise for the first client. An expired list
does not prevent a start: it disables only what its CA has issued.

Never: raises for a bad list, or changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from relay.config.model import Config
from relay.errors import ConfigError, Problem
from relay.files import Files
from relay.tls.certificates.certificate import Certificate, Name, subject_of
from relay.tls.certificates.extensions import is_ca
from relay.tls.certificates.findings import Finding, Level, day, days, quoted
from relay.tls.certificates.pem import load_authorities
from relay.tls.revocation.crl import key_id
from relay.tls.revocation.fetched import FetchedLists
from relay.tls.revocation.revoked_cas import revoked_cas
from relay.tls.revocation.revoked_set import ListInfo, RevokedSet
from relay.tls.revocation.selection import Accepted, Key
from relay.tls.revocation.set_builder import BuiltSet, SetBuilder
from relay.tls.revocation.trust_sets import CrlUse, TrustSet, trust_sets_of

Fetched = Callable[[TrustSet], FetchedLists]
"""What the checker has fetched for a set."""


@dataclass(frozen=True, slots=True)
class CheckedLists:
    """The sets of a configuration by name, without those that have errors.

    `dates` are about lists, each once for each use: their dates change by themselves.
    """

    findings: list[Finding] = field(default_factory=list)
    dates: list[Finding] = field(default_factory=list)
    sets: dict[str, bytes] = field(default_factory=dict, repr=False)


def lint_lists(
    config: Config,
    now: datetime,
    files: Files,
    fetched: Fetched,
    accepted: Mapping[str, Mapping[Key, Accepted]],
) -> CheckedLists:
    """Check all lists. `accepted` has what the sets in use have, by their names."""
    checked = CheckedLists()
    builder = SetBuilder(now.timestamp(), files)
    for name, trust_set in trust_sets_of(config).items():
        try:
            cas = load_authorities(trust_set.where, trust_set.cas, files)
        except ConfigError:
            continue  # it has a finding of its own
        built = builder.build(trust_set, cas, fetched(trust_set), accepted.get(name))
        checked.findings.extend(lint_set(trust_set, cas, built, now))
        if not built.errors:
            checked.sets[name] = built.buffer
            checked.dates.extend(_lint_dates(trust_set, built, now))
    return checked


def lint_set(
    trust_set: TrustSet, cas: Iterable[Certificate], built: BuiltSet, now: datetime
) -> Iterator[Finding]:
    """Check one set that was built."""
    yield from (_finding(Level.ERROR, problem) for problem in built.errors)
    yield from (_finding(Level.WARNING, problem) for problem in built.unused)
    if built.errors:
        return
    every = tuple(cas)
    gone = revoked_cas(every, RevokedSet(built.buffer))
    left = tuple(each for each in every if each not in gone and each.not_valid_after_utc >= now)
    for use in trust_set.uses:
        for ca in _without_list(left, built.lists):
            yield _missing(trust_set, use, ca)
    for ca, entry in gone.items():
        what = f"is {entry.sentence}" if entry else "is below a CA that is revoked"
        yield Finding(
            Level.WARNING,
            str(trust_set.cas),
            subject_of(ca),
            f"{what}: everything that it issued is refused",
            "remove it from the file, and replace the certificates that it issued",
            trust_set.where,
        )


def _finding(level: Level, problem: Problem) -> Finding:
    return Finding(level, "", "", problem.what, problem.remedy, problem.where)


def _without_list(
    cas: tuple[Certificate, ...], lists: tuple[ListInfo, ...]
) -> Iterator[Certificate]:
    """The CAs without a list that covers what they issue, each key and name once.

    And certificates that are no CA, if no CA here could have a list with them.
    """
    issuers = {each.issuer for each in cas if each.issuer != each.subject}
    seen: set[tuple[bytes, Name]] = set()
    for each in cas:
        issuer_key = key_id(each.spki)
        if (issuer_key, each.subject) in seen or (not is_ca(each) and _has_issuer(each, cas)):
            continue
        seen.add((issuer_key, each.subject))
        names = {ca.subject.rfc4514_string() for ca in cas if ca.subject == each.subject}
        # What lists must not leave out: CA certificates if it has issued one of this
        # file, all others if it has not.
        left_out = "user" if each.subject in issuers else "ca"
        own = (info for info in lists if info.issuer_key == issuer_key and info.issuer in names)
        scopes = [info.scope for info in own]
        if not any(scope.only != left_out for scope in scopes):
            yield each


def _has_issuer(certificate: Certificate, cas: tuple[Certificate, ...]) -> bool:
    return any(each.subject == certificate.issuer and is_ca(each) for each in cas)


def _missing(trust_set: TrustSet, use: CrlUse, ca: Certificate) -> Finding:
    subject = quoted(subject_of(ca))
    if use.crl.missing == "accept":
        level, what = Level.WARNING, "what it issued is not looked up"
        remedy = f"add its list to {use.files_where}"
    elif trust_set.is_fetched:
        level, what = Level.WARNING, f"{_peers(use)} are refused until one is fetched"
        remedy = "wait for the first fetch; if it fails, the log says why"
    else:
        level, what = Level.ERROR, f"{_peers(use)} would be refused"
        remedy = f'add its list to {use.files_where}, or set crl.missing = "accept"'
    if is_ca(ca):
        what = f"the CA {subject} has no list: {what}"
    else:
        what = f"{subject} is not a CA, and no list covers it"
        remedy = 'trust the CA that issued it, or set crl.missing = "accept"'
    return Finding(level, "", "", f"{trust_set.cas}: {what}", remedy, use.where)


def _peers(use: CrlUse) -> str:
    return "the backends" if use.pool else "the clients"


def _lint_dates(trust_set: TrustSet, built: BuiltSet, now: datetime) -> Iterator[Finding]:
    for use in trust_set.uses:
        for info in built.lists:
            yield from _lint_date(use, info, now)


def _lint_date(use: CrlUse, info: ListInfo, now: datetime) -> Iterator[Finding]:
    scope = f" ({info.scope})" if str(info.scope) else ""
    name = f"{info.name}{scope}"
    if info.next_update is None:
        what = f"{name} never expires: it has no next update; revoked: {info.entries}"
        yield Finding(Level.INFO, "", "", what, "", use.where)
        return
    until = datetime.fromtimestamp(info.next_update, UTC)
    if now <= until:
        what = f"{name} is valid until {day(until)}; revoked: {info.entries}"
        yield Finding(Level.INFO, "", "", what, "", use.where)
        return
    what = f"{name} expired on {day(until)}, {days(now - until)} ago"
    remedy = "get the CA's newest list"
    end = until + timedelta(seconds=use.crl.grace_s)
    if use.crl.expired == "grace" and now <= end:
        what += f"; it counts until {day(end)}"
        yield Finding(Level.WARNING, "", "", what, remedy, use.where)
    else:
        what += f": {_peers(use)} that it covers are refused"
        yield Finding(Level.ERROR, "", "", what, remedy, use.where, temporary=True)

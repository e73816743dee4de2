"""Compares a renewed certificate with the one that it replaces.

A renewal must not make a route worse. What would lose clients is a reason to keep the
certificate in use: another chain that peers cannot build a path from, or a name of the
route that is gone. Fewer names, or an earlier end, only give a warning.

Never: checks a certificate by itself (that is `tls.certificates.lint`).
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.errors import Problem
from relay.tls.certificates.certificate import subject_of
from relay.tls.certificates.configured import PairUse
from relay.tls.certificates.findings import Level, day
from relay.tls.certificates.lint_chain import lint_chain
from relay.tls.certificates.lint_key_pairs import missing_names
from relay.tls.certificates.openssl import Issuers, Role
from relay.tls.certificates.pem import KeyPair

_MAX_NAMES = 5


def reasons_to_keep(
    use: PairUse, before: KeyPair, after: KeyPair, known: Issuers
) -> Iterator[Problem]:
    """Why the pair in use must stay; `known` finds the issuers in the CA files."""
    role = Role.CLIENT if use.pool else Role.SERVER
    subject = f'{after.file} ("{subject_of(after.leaf)}")'
    broken = _chain_problems(after, role, known)
    if broken and not _chain_problems(before, role, known):
        what, remedy = broken[0]
        yield Problem(use.where, f"{subject}: {what}; the chain in use is complete", remedy)
    lost = _lost_names(use, before, after)
    if lost:
        what = f"{subject} does not carry {_listed(lost)}, which the certificate in use carries"
        remedy = "issue it with every name of the route, or take these names out of sni"
        yield Problem(use.where, what, remedy)


def warnings_of(use: PairUse, before: KeyPair, after: KeyPair) -> Iterator[Problem]:
    """What is worse than before, but no reason to keep the pair in use."""
    subject = f'{after.file} ("{subject_of(after.leaf)}")'
    missing = missing_names(after.leaf, _names_of(before))
    if missing and not _lost_names(use, before, after):
        what = f"{subject} has fewer names than before: {_listed(missing)} missing"
        yield Problem(use.where, what, "issue it with these names if clients use them")
    if after.leaf.not_valid_after_utc < before.leaf.not_valid_after_utc:
        end, earlier = before.leaf.not_valid_after_utc, after.leaf.not_valid_after_utc
        what = (
            f"{subject} expires on {day(earlier)}, before the certificate that it replaces"
            f" ({day(end)})"
        )
        yield Problem(use.where, what, "check that an older file was not copied over a newer one")


def _lost_names(use: PairUse, before: KeyPair, after: KeyPair) -> list[str]:
    """Names that the route serves and that only the certificate in use carries.

    A route without sni serves every name. It loses them when none is left.
    """
    if use.pool:
        return []
    if use.sni:
        return [name for name in missing_names(after.leaf, use.sni) if not _lacks(before, name)]
    names = _names_of(before)
    missing = missing_names(after.leaf, names)
    return missing if names and len(missing) == len(names) else []


def _lacks(pair: KeyPair, name: str) -> bool:
    return bool(missing_names(pair.leaf, (name,)))


def _names_of(pair: KeyPair) -> list[str]:
    names = pair.leaf.alt_names
    return sorted({name.lower() for name in names.dns}) if names else []


def _chain_problems(pair: KeyPair, role: Role, known: Issuers) -> list[tuple[str, str]]:
    found = lint_chain(pair.chain, role, known)
    return [(each.what, each.remedy) for each in found if each.level is not Level.INFO]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{', '.join(names[:_MAX_NAMES])}{more}"

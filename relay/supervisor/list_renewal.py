"""Works out the revoked certificates of trust sets whose files have changed.

It runs in the child that inspects files. For a bad list, what is in use stays in use:
the newer lists of other CAs count nevertheless.

Never: takes a CA that has no list for an error: its peers are refused, and the lists of
other CAs must not wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from relay.errors import ConfigError, Problem
from relay.files import Files
from relay.supervisor.list_sets import fetched_lists, trust_sets_by_key
from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.file_sets import SetKey
from relay.tls.certificates.findings import Level, as_problem
from relay.tls.certificates.pem import load_authorities
from relay.tls.generation import Generation
from relay.tls.revocation.lint_lists import lint_set
from relay.tls.revocation.selection import Accepted, Key, accepted_of
from relay.tls.revocation.set_builder import SetBuilder
from relay.tls.revocation.trust_sets import TrustSet


@dataclass(slots=True)
class RenewedLists:
    """By the key of a set of files: the buffers of its trust sets, and its faults.

    With both, the buffers have what can be used, and what is in use for the rest.
    """

    buffers: dict[SetKey, dict[str, bytes]] = field(default_factory=dict)
    problems: dict[SetKey, list[Problem]] = field(default_factory=dict)
    warnings: list[Problem] = field(default_factory=list)


def renew_lists(
    generation: Generation,
    keys: Collection[SetKey],
    files: Files,
    refused_cas: Collection[Path],
    now: datetime,
) -> RenewedLists:
    """Work out the sets with these keys.

    `refused_cas` are CA files that cannot be used: there the CAs in use count.
    """
    found = RenewedLists()
    builder = SetBuilder(now.timestamp(), files)
    for key, several in trust_sets_by_key(generation.config).items():
        for each in several if key in keys else ():
            cas = _cas_of(generation, each, files, refused_cas)
            built = builder.build(
                each,
                cas,
                fetched_lists(generation.config, each),
                in_use=generation.revoked.get(each.name),
            )
            if built.errors:
                found.problems.setdefault(key, []).extend(built.errors)
            if built.is_partial or not built.errors:
                found.buffers.setdefault(key, {})[each.name] = built.buffer
            if built.errors:
                continue
            found.warnings += [
                as_problem(finding)
                for finding in lint_set(each, cas, built, now)
                if finding.level is not Level.INFO
            ]
    return found


def accepted_by(generation: Generation) -> Mapping[str, Mapping[Key, Accepted]]:
    """The numbers and dates of the lists in use, by the name of their trust set."""
    return {name: accepted_of(each.lists) for name, each in generation.revoked.items()}


def _cas_of(
    generation: Generation, trust_set: TrustSet, files: Files, refused: Collection[Path]
) -> tuple[Certificate, ...]:
    if trust_set.cas not in refused:
        with contextlib.suppress(ConfigError):
            return load_authorities(trust_set.where, trust_set.cas, files)
    for listener in generation.config.listener:
        for live, route in generation.terminating(listener):
            if route.client_ca == trust_set.cas:
                return live.cas.certificates
    for name, pool in generation.config.pool.items():
        if pool.backend_ca == trust_set.cas and generation.targets[name]:
            return generation.targets[name][0].cas.certificates
    return ()

"""Reads and checks a configuration and its files, and looks up host names: in a child.

All of this can be slow: a file system or a resolver may hang. So it runs in a process
of its own, which hands the result back to the supervisor. The result holds the bytes of
every file that was checked, so the relay uses exactly what was checked.

Never: builds a TLS context, or changes anything.
Next: `relay.supervisor.prepare.Preparation`
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from relay.checker.crl_cache import cached_list
from relay.checker.crl_learned import hosts_in, is_on, read_learned
from relay.checker.resolver import Resolve, look_up
from relay.config.load import load_config
from relay.config.model import Config
from relay.errors import ConfigError, Problem, StartupError
from relay.files import Contents, Files
from relay.logs.access_log import check_access_log
from relay.memory_shortage import HINT, describe_shortage, is_too_little_memory
from relay.shared.addresses import Ip
from relay.shared.backends_view import pool_facts
from relay.shared.entities import Entities, entities_of, hosts_of
from relay.shared.messages import ConfigFacts
from relay.shared.password import load_password
from relay.supervisor.file_owners import check_owners
from relay.supervisor.host_lookup import (
    failed_hosts,
    kept_answers,
    look_up_all,
    unresolved_backends,
)
from relay.supervisor.privileges import Identity, acting_as, find_identity
from relay.tls.certificates.configured import authorities_of, pairs_of
from relay.tls.certificates.findings import Finding, Level
from relay.tls.certificates.inventory import CertificateInfo, certificates_of
from relay.tls.certificates.lint import lint_with_periods
from relay.tls.certificates.lint_cas import usable_cas
from relay.tls.certificates.pem import load_authorities, load_key_pair
from relay.tls.certificates.validity import period_of_cas, period_of_pair
from relay.tls.certificates.validity_periods import ValidityPeriod
from relay.tls.ciphers import lint_ciphers
from relay.tls.lint_staples import lint_staples
from relay.tls.revocation.fetched import FetchedLists
from relay.tls.revocation.lint_lists import lint_lists
from relay.tls.revocation.selection import Accepted, Key
from relay.tls.revocation.trust_sets import TrustSet


@dataclass(frozen=True, slots=True)
class PrepareRequest:
    """What to prepare: a file, and the configuration that runs now, if any.

    `known`: addresses of host names, kept when a look-up fails. `strict`: also refuse
    what would only disable a route, pool or backend. `renews`: prepare the running
    configuration again, but only if the certificate or CA file of one of these keys is
    valid now. `accepted`: the revocation lists in use, by the name of their trust set.
    """

    path: Path
    running: Config | None = None
    known: Mapping[str, tuple[Ip, ...]] = field(default_factory=dict)
    strict: bool = False
    renews: frozenset[str] = frozenset()
    accepted: Mapping[str, Mapping[Key, Accepted]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found, with everything that building the TLS contexts needs."""

    config: Config
    identity: Identity
    slots: int
    certificates: tuple[CertificateInfo, ...]
    entities: Entities
    description: bytes
    contents: Contents = field(repr=False)
    addresses: Mapping[str, tuple[Ip, ...]]
    unresolved: Mapping[str, str]
    periods: Mapping[str, ValidityPeriod]
    password: str = field(repr=False)
    warnings: tuple[Problem, ...]
    revoked: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # see `RevokedSet`


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no Inspection: problems, or one failure and a hint.

    `unchanged`: the renewed file that was looked for is not there yet.
    """

    problems: tuple[Problem, ...] = ()
    what: str = ""
    hint: str = ""
    unchanged: bool = False


def inspect(request: PrepareRequest, resolve: Resolve = look_up) -> Inspection:
    """Inspect a configuration. Raises ConfigError (all problems) or StartupError."""
    config = _config_of(request)
    identity = find_identity(config.relay)
    files = Files()
    now = _now()
    findings, periods = lint_with_periods(config, now, files)
    findings += lint_ciphers(config) + check_owners(config)
    checked = lint_lists(config, now, files, partial(fetched_lists, config), request.accepted)
    findings += checked.findings
    findings += lint_staples(config, now, files)
    errors = [one for one in findings if one.level is Level.ERROR]
    problems = [as_problem(one) for one in errors if request.strict or not one.temporary]
    if request.strict:
        problems += [as_problem(one) for one in checked.dates if one.level is Level.ERROR]
    problems += access_log_problems(config, identity)
    password, password_problems = read_password(config)
    problems += password_problems
    warnings = [as_problem(one) for one in findings if one.level is Level.WARNING]
    answers = look_up_all(hosts_of(config), resolve)
    failed = failed_hosts(answers, request.known)
    if request.strict:
        problems += unresolved_backends(config, failed)
    warnings += kept_answers(answers, request.known)
    if problems:
        raise ConfigError(problems)
    certificates = certificates_of(config, files)
    return Inspection(
        config=config,
        identity=identity,
        slots=_slots_of(config),
        certificates=certificates,
        entities=entities_of(config),
        description=_describe(config, certificates),
        contents=files.contents,
        addresses={
            host: answer.addresses or tuple(request.known.get(host, ()))
            for host, answer in answers.items()
        },
        unresolved=failed,
        periods=periods,
        password=password,
        warnings=tuple(warnings),
        revoked=checked.sets,
    )


def fetched_lists(config: Config, trust_set: TrustSet) -> FetchedLists:
    """What the checker has fetched for a trust set, where it keeps it."""
    state_dir = config.relay.state_dir
    files = {cached_list(state_dir, url): url for url in trust_set.urls}
    if not trust_set.from_certificates:
        return FetchedLists(files)
    found, hosts = read_learned(state_dir), hosts_in(trust_set.uses[0].crl)
    learned = {cached_list(state_dir, url): url for url in found.urls if is_on(url, hosts)}
    return FetchedLists(files, learned, found.issuers)


def _config_of(request: PrepareRequest) -> Config:
    if request.renews and request.running is not None:
        return request.running
    config = load_config(request.path)
    if request.running is not None:
        problems = list(_changes_that_need_a_restart(request.running, config))
        if problems:
            raise ConfigError(problems)
    return config


def _changes_that_need_a_restart(running: Config, config: Config) -> Iterator[Problem]:
    if config.relay.state_dir != running.relay.state_dir:
        yield Problem(
            "relay.state_dir",
            f"cannot change from {running.relay.state_dir} while the relay runs",
            "restart the relay",
        )
    if (config.relay.user, config.relay.group, config.relay.admin_user) != (
        running.relay.user,
        running.relay.group,
        running.relay.admin_user,
    ):
        yield Problem(
            "relay.user",
            "user, group and admin_user cannot change while the relay runs",
            "restart the relay",
        )


def access_log_problems(config: Config, identity: Identity) -> list[Problem]:
    """Why the workers, as this user, could not write their access log."""
    with acting_as(identity):
        return check_access_log(
            config.log.access, config.log.access_rotate_s, config.log.access_format
        )


def read_password(config: Config) -> tuple[str, list[Problem]]:
    """The admin page's password, "" for none, and why its file cannot be used."""
    admin = config.admin
    try:
        return load_password(admin.password_file) if admin.password_file else "", []
    except ConfigError as error:
        return "", list(error.problems)


def as_problem(finding: Finding) -> Problem:
    """A finding as one line that names the file and the certificate's subject."""
    about = " ".join(
        filter(None, (finding.file, f"({finding.subject})" if finding.subject else ""))
    )
    what = f"{about}: {finding.what}" if about else finding.what
    return Problem(finding.where, what, finding.remedy)


def _slots_of(config: Config) -> int:
    """The number of workers: as configured, or the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if config.relay.workers == "auto" else config.relay.workers


def _describe(config: Config, certificates: Iterable[CertificateInfo]) -> bytes:
    """What readers of the scoreboard need to know of a generation, as JSON.

    Made once per generation, because a configuration may have thousands of backends.
    """
    facts: ConfigFacts = {
        "certificates": [
            {"file": each.file, "subject": each.subject, "not_after": each.not_after_at}
            for each in certificates
        ],
        "routes": [
            (listener.name, route.label, route.pool)
            for listener in config.listener
            for route in listener.route
        ],
        "pools": pool_facts(config),
    }
    return json.dumps(facts).encode()


def _is_renewed(config: Config, wheres: frozenset[str], now: datetime) -> bool:
    """Whether the files of one of these keys are valid now (and readable)."""
    files = Files()
    periods = []
    for pair in pairs_of(config):
        if pair.where in wheres:
            with contextlib.suppress(ConfigError):
                certificate, private_key, passphrase = pair.files
                found = load_key_pair(pair.where, certificate, private_key, files, passphrase)
                periods.append(period_of_pair(pair.where, found))
    for use in authorities_of(config):
        if use.where in wheres:
            with contextlib.suppress(ConfigError):
                usable = usable_cas(use, load_authorities(use.where, use.file, files), now)
                periods.append(
                    period_of_cas(use.where, use.file, usable, now, partial=use.rules.partial_chain)
                )
    return any(not period.why_invalid(now.timestamp()) for period in periods)


def _now() -> datetime:
    return datetime.now(UTC)


def inspect_to_bytes(request: PrepareRequest, resolve: Resolve = look_up) -> bytes:
    """What the child writes to the supervisor: a pickled `Inspection` or `Refusal`."""
    found: Inspection | Refusal
    try:
        config = request.running
        if (
            config is not None
            and request.renews
            and not _is_renewed(config, request.renews, _now())
        ):
            return pickle.dumps(Refusal(unchanged=True), pickle.HIGHEST_PROTOCOL)
        found = inspect(request, resolve)
    except ConfigError as error:
        found = Refusal(problems=error.problems)
    except StartupError as error:
        found = Refusal(what=error.what, hint=error.hint)
    except Exception as error:
        if not is_too_little_memory(error):
            raise
        found = Refusal(what=describe_shortage(error), hint=HINT)
    return pickle.dumps(found, pickle.HIGHEST_PROTOCOL)

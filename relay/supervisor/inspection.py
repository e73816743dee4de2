"""Reads and checks a configuration and its files, and looks up host names: in a child.

All of this can be slow: a file system or a resolver may hang. So it runs in a process
of its own, which hands the result back to the supervisor. The result holds the bytes of
every file that was checked, so the relay uses exactly what was checked.

Never: builds a TLS context, or changes anything.
Next: `relay.supervisor.prepare.Preparation`
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from relay.checker.host_lookup import Resolve
from relay.checker.lookup import look_up
from relay.config.load import Loaded, load
from relay.config.model import Config
from relay.errors import ConfigError, Problem, StartupError
from relay.files import Contents, Files, Fingerprint
from relay.logs.access_log import check_access_log
from relay.memory_shortage import HINT, describe_shortage, is_too_little_memory
from relay.quick_pickle import dumps
from relay.shared.addresses import Located
from relay.shared.backends_view import pool_facts
from relay.shared.entities import Entities, entities_of, hosts_of
from relay.shared.messages import ConfigFacts
from relay.shared.password import load_password
from relay.supervisor.cpus import usable_cpus
from relay.supervisor.file_owners import check_owners
from relay.supervisor.host_lookup import (
    failed_hosts,
    kept_answers,
    look_up_all,
    unresolved_backends,
)
from relay.supervisor.list_sets import all_sets, fetched_lists
from relay.supervisor.peer_users import find_peer_users
from relay.supervisor.privileges import Identity, acting_as, find_identity
from relay.supervisor.renewal_check import Renewed, Running, check_renewal
from relay.supervisor.restart_changes import changes_that_need_a_restart
from relay.supervisor.set_reading import Digests, are_unchanged, digests_of, other_digests
from relay.supervisor.source_addresses import missing_sources
from relay.tls.after_fork import release_provider_keys
from relay.tls.certificates.file_sets import SetKey
from relay.tls.certificates.findings import Level, as_problem
from relay.tls.certificates.inventory import CertificateInfo, certificates_of
from relay.tls.certificates.lint import lint_with_periods
from relay.tls.certificates.validity_periods import ValidityPeriod
from relay.tls.ciphers import lint_ciphers
from relay.tls.cookie_secret import load_secrets
from relay.tls.lint_key_suites import lint_key_suites
from relay.tls.lint_staples import lint_staples
from relay.tls.revocation.lint_lists import lint_lists
from relay.tls.revocation.selection import Accepted, Key
from relay.tls.revocation.trust_sets import trust_sets_of


@dataclass(frozen=True, slots=True)
class PrepareRequest:
    """What to prepare: a file, and the configuration that runs now, if any.

    `known`: addresses of host names, kept when a look-up fails. `strict`: also refuse
    what would only disable a route, pool or backend. `renews`: only look for renewed
    files, in these sets. `accepted`: the revocation lists in use, by the name of their
    trust set. `canary`: renewed files are a change like any other.
    """

    path: Path
    running: Running | None = None
    known: Mapping[str, tuple[Located, ...]] = field(default_factory=dict)
    strict: bool = False
    renews: frozenset[SetKey] = frozenset()
    accepted: Mapping[str, Mapping[Key, Accepted]] = field(default_factory=dict)
    canary: bool = False


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
    addresses: Mapping[str, tuple[Located, ...]]
    unresolved: Mapping[str, str]
    periods: Mapping[str, ValidityPeriod]
    password: str = field(repr=False)
    warnings: tuple[Problem, ...]
    digests: Digests
    fingerprints: Mapping[Path, Fingerprint]
    others: Mapping[tuple[Path, int], bytes]
    revoked: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # see `RevokedSet`
    users: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no Inspection: problems, or one failure and a hint."""

    problems: tuple[Problem, ...] = ()
    what: str = ""
    hint: str = ""


def inspect(request: PrepareRequest, resolve: Resolve = look_up) -> Inspection | Renewed:
    """Inspect a configuration, or only the files of the running one.

    The files are enough if nothing else has changed. Raises ConfigError (all problems)
    or StartupError.
    """
    running = request.running
    if running is not None and request.renews:
        return _look_for_renewed(running, request.renews)
    loaded = load(request.path)
    places = loaded.places
    try:
        found = _inspect(request, loaded, resolve)
    except ConfigError as error:
        raise places.locate_error(error) from None
    except StartupError as error:
        raise places.locate_failure(error) from None
    warnings = tuple(places.locate(found.warnings))
    if isinstance(found, Inspection):
        return replace(found, warnings=warnings)
    refused = [
        replace(each, problems=tuple(places.locate(each.problems))) for each in found.refused
    ]
    return replace(found, warnings=warnings, refused=tuple(refused))


def _inspect(request: PrepareRequest, loaded: Loaded, resolve: Resolve) -> Inspection | Renewed:
    running, config = request.running, loaded.config
    if running is not None:
        if problems := list(changes_that_need_a_restart(running.config, config)):
            raise ConfigError(problems)
        if _is_unchanged(running, config):
            renewed = _look_for_renewed(running, None)
            if not request.canary or not (renewed.sets or renewed.partial or renewed.refused):
                return renewed
            problems = [problem for each in renewed.refused for problem in each.problems]
            if problems:
                raise ConfigError(problems)
    return _inspect_all(request, loaded, resolve)


def _is_unchanged(running: Running, config: Config) -> bool:
    """Whether everything is as it was, apart from certificates, keys and CAs."""
    if config != running.config:
        return False
    secrets, problems = load_secrets(config)
    password, password_problems = read_password(config)
    return (
        not problems
        and not password_problems
        and are_unchanged(running.others)
        and secrets == running.in_use.generation.secrets
        and password == running.password
        and find_identity(config.relay) == running.identity
        and find_peer_users(config)[0] == running.in_use.generation.users
        and _slots_of(config) == running.slots
    )


def _look_for_renewed(running: Running, only: frozenset[SetKey] | None) -> Renewed:
    found = check_renewal(running.in_use, _now(), only)
    release_provider_keys(running.in_use.generation)  # that it has tried out
    return replace(found, description=_describe(running.config, found.certificates))


def _inspect_all(request: PrepareRequest, loaded: Loaded, resolve: Resolve) -> Inspection:
    config = loaded.config
    identity = find_identity(config.relay)
    files = Files()
    now = _now()
    findings, periods = lint_with_periods(config, now, files)
    findings += lint_ciphers(config) + check_owners(loaded)
    checked = lint_lists(config, now, files, partial(fetched_lists, config), request.accepted)
    findings += checked.findings
    findings += lint_key_suites(config, files)
    findings += lint_staples(config, now, files)
    errors = [one for one in findings if one.level is Level.ERROR]
    problems = [as_problem(one) for one in errors if request.strict or not one.temporary]
    if request.strict:
        problems += [as_problem(one) for one in checked.dates if one.level is Level.ERROR]
    problems += access_log_problems(config, identity)
    password, password_problems = read_password(config)
    users, user_problems = find_peer_users(config)
    problems += password_problems + user_problems
    warnings = [as_problem(one) for one in findings if one.level is Level.WARNING]
    answers = look_up_all(hosts_of(config), resolve)
    failed = failed_hosts(answers, request.known)
    if request.strict:
        warnings += loaded.without_match
        problems += unresolved_backends(config, failed)
    warnings += kept_answers(answers, request.known)
    if problems:
        raise ConfigError(problems)
    for missing in missing_sources(config):  # it may come later, as with listeners
        raise StartupError(f"{missing.where}: {missing.what}", missing.remedy)
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
        digests=digests_of(all_sets(config), files),
        fingerprints=files.fingerprints,
        others=other_digests(all_sets(config), files),
        revoked=checked.sets,
        users=users,
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


def _slots_of(config: Config) -> int:
    """The number of workers: as configured, or the CPUs that this process may use."""
    return usable_cpus() if config.relay.workers == "auto" else config.relay.workers


def _describe(config: Config, certificates: Iterable[CertificateInfo]) -> bytes:
    """What readers of the scoreboard need to know of a generation, as JSON.

    Made once per generation, because a configuration may have thousands of backends.
    """
    facts: ConfigFacts = {
        "certificates": [
            {"file": each.file, "subject": each.subject, "not_after": each.not_after_at}
            for each in certificates
        ],
        "list_files": [
            str(file)
            for file in dict.fromkeys(
                file for each in trust_sets_of(config).values() for file in each.files
            )
        ],
        "routes": [
            (listener.name, route.label, route.pool)
            for listener in config.listener
            for route in listener.route
        ],
        "pools": pool_facts(config),
    }
    return json.dumps(facts).encode()


def _now() -> datetime:
    return datetime.now(UTC)


def inspect_to_bytes(request: PrepareRequest, resolve: Resolve = look_up) -> bytes:
    """What the child writes to the supervisor: what was found, or a `Refusal`."""
    found: Inspection | Renewed | Refusal
    try:
        found = inspect(request, resolve)
    except ConfigError as error:
        found = Refusal(problems=error.problems)
    except StartupError as error:
        found = Refusal(what=error.what, hint=error.hint)
    except Exception as error:
        if not is_too_little_memory(error):
            raise
        found = Refusal(what=describe_shortage(error), hint=HINT)
    return dumps(found)

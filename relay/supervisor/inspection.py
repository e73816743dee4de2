"""Everything slow about a configuration: reads it and all its files, judges them, looks names up.

This runs in a process of its own, so none of it holds up the supervisor, however long a file
system or a resolver takes. What it hands back holds the bytes that it judged.

Never: builds a TLS context, or changes anything.
Next: `relay.supervisor.prepare.Preparation`
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from relay.checker.resolver import Resolve, look_up
from relay.config.load import load_config
from relay.config.model import Config
from relay.errors import ConfigError, Problem, StartupError
from relay.files import Contents, Files
from relay.memory_shortage import HINT, in_words, is_too_little_memory
from relay.shared.addresses import Ip
from relay.shared.catalogue import Entities, entities_of, hosts_of
from relay.supervisor.file_owners import check_owners
from relay.supervisor.host_lookup import homeless, kept, look_up_all, unresolved
from relay.supervisor.prepared import (
    access_log_problems,
    as_problem,
    changes_that_need_a_restart,
    describe,
    password_of,
    slots_of,
)
from relay.supervisor.privileges import Identity, find_identity
from relay.tls.certificates.findings import Level
from relay.tls.certificates.lint import lint_with_periods
from relay.tls.certificates.lint_cas import usable_cas
from relay.tls.certificates.pem import (
    CertificateInfo,
    authorities_of,
    certificates_of,
    load_authorities,
    load_key_pair,
    pairs_of,
)
from relay.tls.certificates.validity import period_of_cas, period_of_pair
from relay.tls.certificates.validity_periods import ValidityPeriod
from relay.tls.ciphers import lint_ciphers


@dataclass(frozen=True, slots=True)
class PrepareRequest:
    """What is to be prepared: a file, beside what runs.

    `known` are addresses that are kept when a look-up fails. `strict`: what would only disable a route
    or a backend is a refusal. `renews`: the running configuration is to be prepared again, but only
    if what one of these keys names is valid now.
    """

    path: Path
    running: Config | None = None
    known: Mapping[str, tuple[Ip, ...]] = field(default_factory=dict)
    strict: bool = False
    renews: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found out, with everything that building contexts needs."""

    config: Config
    identity: Identity
    slots: int
    certificates: tuple[CertificateInfo, ...]
    entities: Entities
    description: bytes
    contents: Contents = field(repr=False)
    addresses: Mapping[str, tuple[Ip, ...]]
    homeless: Mapping[str, str]
    periods: Mapping[str, ValidityPeriod]
    password: str = field(repr=False)
    warnings: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no survey: problems of the configuration, or what happened and what to do.

    `unchanged`: no renewal is there.
    """

    problems: tuple[Problem, ...] = ()
    what: str = ""
    hint: str = ""
    unchanged: bool = False


def inspect(wish: PrepareRequest, resolve: Resolve = look_up) -> Inspection:
    """Find everything out. Raises ConfigError with all problems, or StartupError."""
    config = _config_of(wish)
    identity = find_identity(config.relay)
    files = Files()
    findings, periods = lint_with_periods(config, _now(), files)
    findings += lint_ciphers(config) + check_owners(config)
    refused = [one for one in findings if one.level is Level.ERROR]
    problems = [as_problem(one) for one in refused if wish.strict or not one.temporary]
    problems += access_log_problems(config, identity)
    password, password_problems = password_of(config)
    problems += password_problems
    warnings = [as_problem(one) for one in findings if one.level is Level.WARNING]
    answers = look_up_all(hosts_of(config), resolve)
    without = homeless(answers, wish.known)
    if wish.strict:
        problems += unresolved(config, without)
    warnings += kept(answers, wish.known)
    if problems:
        raise ConfigError(problems)
    certificates = certificates_of(config, files)
    return Inspection(
        config=config,
        identity=identity,
        slots=slots_of(config),
        certificates=certificates,
        entities=entities_of(config),
        description=describe(config, certificates),
        contents=files.contents,
        addresses={
            host: answer.addresses or tuple(wish.known.get(host, ()))
            for host, answer in answers.items()
        },
        homeless=without,
        periods=periods,
        password=password,
        warnings=tuple(warnings),
    )


def _config_of(wish: PrepareRequest) -> Config:
    if wish.renews and wish.running is not None:
        return wish.running
    config = load_config(wish.path)
    if wish.running is not None:
        problems = list(changes_that_need_a_restart(wish.running, config))
        if problems:
            raise ConfigError(problems)
    return config


def is_renewed(config: Config, wheres: frozenset[str], now: datetime) -> bool:
    """Whether what one of these keys names is valid. A file that cannot be read is not."""
    files = Files()
    periods = []
    for pair in pairs_of(config):
        if pair.where in wheres:
            with contextlib.suppress(ConfigError):
                found = load_key_pair(pair.where, pair.certificate, pair.private_key, files)
                periods.append(period_of_pair(pair.where, found))
    for use in authorities_of(config):
        if use.where in wheres:
            with contextlib.suppress(ConfigError):
                usable = usable_cas(use, load_authorities(use.where, use.file, files), now)
                periods.append(period_of_cas(use.where, use.file, usable, now))
    return any(not period.why_invalid(now.timestamp()) for period in periods)


def _now() -> datetime:
    return datetime.now(UTC)


def survey_in_bytes(wish: PrepareRequest, resolve: Resolve = look_up) -> bytes:
    """What the supervisor reads from its child: a `Inspection` or a `Refusal`, pickled."""
    found: Inspection | Refusal
    try:
        config = wish.running
        if config is not None and wish.renews and not is_renewed(config, wish.renews, _now()):
            return pickle.dumps(Refusal(unchanged=True), pickle.HIGHEST_PROTOCOL)
        found = inspect(wish, resolve)
    except ConfigError as error:
        found = Refusal(problems=error.problems)
    except StartupError as error:
        found = Refusal(what=error.what, hint=error.hint)
    except Exception as error:
        if not is_too_little_memory(error):
            raise
        found = Refusal(what=in_words(error), hint=HINT)
    return pickle.dumps(found, pickle.HIGHEST_PROTOCOL)

"""What a start, a reload and `relay check` have to find out, and what comes of it.

Never: changes anything a running generation uses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from relay.checker.resolver import look_up
from relay.config.address import compete
from relay.config.model import Config
from relay.errors import ConfigError, ControlError, Problem, StartupError
from relay.logs.access_log import check_access_log
from relay.shared.backends_view import pool_facts
from relay.shared.catalogue import Entities, hosts_of
from relay.shared.password import load_password
from relay.shared.scoreboard import Scoreboard
from relay.supervisor.control import ask
from relay.supervisor.file_owners import check_owners
from relay.supervisor.host_lookup import homeless, look_up_all, unresolved
from relay.supervisor.listening import RESTART_OR_MOVE, open_single_listener
from relay.supervisor.privileges import Identity, acting_as, find_identity
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.slot_sockets import listen_addresses
from relay.supervisor.state_dir import check_state_dir
from relay.supervisor.unix_sockets import check_unix
from relay.tls.certificates.findings import Finding, Level
from relay.tls.certificates.lint import lint
from relay.tls.certificates.pem import CertificateInfo
from relay.tls.certificates.validity_periods import ValidityPeriod
from relay.tls.ciphers import lint_ciphers
from relay.tls.contexts import Generation, build_generation

CHECK_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One configuration with everything made from it that can be made without disturbing anybody."""

    config: Config
    generation: Generation
    identity: Identity
    slots: int
    certificates: tuple[CertificateInfo, ...]
    entities: Entities  # that are counted
    description: bytes  # for readers of the scoreboard
    password: str = field(default="", repr=False)
    periods: Mapping[str, ValidityPeriod] = field(
        default_factory=dict
    )  # by the key of the configuration
    homeless: Mapping[str, str] = field(default_factory=dict)  # names without an address, and why


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found out about a configuration.

    `temporary` are problems that may end by themselves: a start disables what has them.
    """

    findings: list[Finding]
    problems: list[Problem]
    temporary: list[Problem]

    @property
    def count(self) -> int:
        """How many things are wrong."""
        errors = [one for one in self.findings if one.level is Level.ERROR]
        return len(errors) + len(self.problems) + len(self.temporary)

    @property
    def would_start(self) -> bool:
        """Whether a start without --strict does not refuse it."""
        lasting = [one for one in self.findings if one.level is Level.ERROR and not one.temporary]
        return not self.problems and not lasting


def check_all(config: Config) -> CheckReport:
    """What `relay check` says of a valid configuration: every certificate's fitness, and everything else that would refuse a start."""
    findings = lint(config, datetime.now(UTC)) + lint_ciphers(config) + check_owners(config)
    problems: list[Problem] = []
    try:
        problems += access_log_problems(config, find_identity(config.relay))
    except StartupError as error:
        key, _, what = error.what.partition(": ")
        problems.append(Problem(key, what, error.hint))
    blamed = {
        where
        for finding in findings
        if finding.level is Level.ERROR
        for where in finding.where.split(", ")
    }
    try:
        build_generation(config, 0)
    except ConfigError as error:
        problems += [
            problem for problem in error.problems if problem.where not in blamed
        ]  # a file that cannot be used is one mistake
    temporary = list(unresolved(config, homeless(look_up_all(hosts_of(config), look_up), {})))
    problems += password_of(config)[1]
    problems += _state_dir_problems(config)
    running = Running.of(config.relay.state_dir)
    problems += _addresses_in_the_way(config, running)
    findings += _what_only_a_restart_does(config, running)
    return CheckReport(findings, problems, temporary)


def access_log_problems(config: Config, identity: Identity) -> list[Problem]:
    """Why the workers could not write their log."""
    with acting_as(identity):
        return check_access_log(
            config.log.access, config.log.access_rotate_s, config.log.access_format
        )


def password_of(config: Config) -> tuple[str, list[Problem]]:
    """The admin page's password, "" without one, and why it cannot be used."""
    admin = config.admin
    try:
        return load_password(admin.password_file) if admin.password_file else "", []
    except ConfigError as error:
        return "", list(error.problems)


def _state_dir_problems(config: Config) -> Iterator[Problem]:
    try:
        check_state_dir(config.relay.state_dir)
    except StartupError as error:
        yield Problem("relay.state_dir", error.what, error.hint)


@dataclass(frozen=True, slots=True)
class Running:
    """What the relay of a state_dir listens on; nothing when none answers."""

    listeners: tuple[str, ...] = ()
    admin: str = ""

    @classmethod
    def of(cls, state_dir: Path) -> Running:
        """As it says itself."""
        try:
            status = ask(state_dir, "status", CHECK_PATIENCE_S)
        except ControlError:
            return cls()
        return cls(
            tuple(address for addresses in status["listeners"].values() for address in addresses),
            status["admin"],
        )


def _addresses_in_the_way(config: Config, running: Running) -> Iterator[Problem]:
    wanted = [(place.where, place.address, place.freebind) for place in listen_addresses(config)]
    if config.admin.listen:
        wanted.append(("admin.listen", config.admin.listen, False))
    for where, address, freebind in wanted:
        if any(compete(address, held) for held in (*running.listeners, running.admin)):
            continue  # the relay of this state_dir is not in its own way
        try:
            if config.admin.unix_path is not None and where == "admin.listen":
                check_unix(where, config.admin.unix_path)
            else:
                open_single_listener(where, address, freebind=freebind).close()
        except StartupError as error:
            yield Problem(where, error.what.removeprefix(f"{where}: "), error.hint)


def _what_only_a_restart_does(config: Config, running: Running) -> Iterator[Finding]:
    # Listeners share their ports with the generation before; the admin process shares its port with nobody.
    wanted: list[tuple[str, str, tuple[str, ...]]] = [
        (place.where, place.address, (running.admin,)) for place in listen_addresses(config)
    ]
    if config.admin.listen != running.admin:
        wanted.append(("admin.listen", config.admin.listen, (running.admin, *running.listeners)))
    for where, address, others in wanted:
        for held in others:
            if compete(address, held):
                who = (
                    "the running relay's own admin process"
                    if held == running.admin
                    else "the running relay"
                )
                yield Finding(
                    Level.WARNING,
                    "",
                    "",
                    f"a reload cannot listen on {address} while {who} listens on {held}",
                    RESTART_OR_MOVE,
                    where,
                )


def as_problem(finding: Finding) -> Problem:
    """A finding in the words of a message: where, which certificate of which file, what, and what to do."""
    about = " ".join(
        filter(None, (finding.file, f"({finding.subject})" if finding.subject else ""))
    )
    return Problem(
        finding.where, f"{about}: {finding.what}" if about else finding.what, finding.remedy
    )


def changes_that_need_a_restart(running: Config, config: Config) -> Iterator[Problem]:
    """What a reload cannot change."""
    if config.relay.state_dir != running.relay.state_dir:
        yield Problem(
            "relay.state_dir",
            f"cannot change from {running.relay.state_dir} while the relay runs",
            "restart it",
        )
    if (config.relay.user, config.relay.group, config.relay.admin_user) != (
        running.relay.user,
        running.relay.group,
        running.relay.admin_user,
    ):
        yield Problem(
            "relay.user",
            "user, group and admin_user cannot change while the relay runs",
            "restart it",
        )


def slots_of(config: Config) -> int:
    """The number of workers: as configured, or the CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if config.relay.workers == "auto" else config.relay.workers


def begin_scoreboard(scoreboards: Scoreboards, prepared: Prepared) -> Scoreboard:
    """The cells of a generation. Raises StartupError when the machine has no memory for them."""
    try:
        return scoreboards.begin(prepared.generation.number, prepared.entities, prepared.slots)
    except OSError as error:
        raise StartupError(
            f"no memory for the counters of generation {prepared.generation.number}: {error.strerror or error}",
            "give the relay more memory or open files, or configure fewer backends and workers",
        ) from None


def describe(config: Config, certificates: Iterable[CertificateInfo]) -> bytes:
    """What readers of the scoreboard are told of a generation as long as it serves: made once, as there may be thousands of backends."""
    ends = [
        {"file": one.file, "subject": one.subject, "not_after": one.not_after_at}
        for one in certificates
    ]
    routes = [
        (listener.name, route.label, route.pool)
        for listener in config.listener
        for route in listener.route
    ]
    return json.dumps(
        {"certificates": ends, "routes": routes, "pools": pool_facts(config)}
    ).encode()

"""`relay check`: finds everything that a start or reload would refuse or disable.

Besides what `relay.supervisor.inspection` looks at, it opens the listening addresses
for a moment and asks the running relay, if there is one, which of them it holds.

Never: changes anything on disk or in a running relay.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from relay.checker.lookup import look_up
from relay.config.address import conflict, unix_path
from relay.config.key_path import listener_paths
from relay.config.load import Loaded
from relay.config.model import Config
from relay.config.places import Places
from relay.errors import ConfigError, ControlError, Problem, StartupError
from relay.files import Files
from relay.shared.entities import hosts_of
from relay.supervisor.control_client import ask
from relay.supervisor.file_owners import check_owners
from relay.supervisor.host_lookup import failed_hosts, look_up_all, unresolved_backends
from relay.supervisor.inspection import access_log_problems, read_password
from relay.supervisor.list_sets import fetched_lists
from relay.supervisor.listen_addresses import listen_addresses
from relay.supervisor.listening import RESTART_OR_MOVE, open_single_listener
from relay.supervisor.needed_calls import refuse_without_needed_calls
from relay.supervisor.peer_users import find_peer_users
from relay.supervisor.privileges import find_identity
from relay.supervisor.source_addresses import missing_sources
from relay.supervisor.state_dir import check_state_dir
from relay.supervisor.unix_sockets import check_unix
from relay.tls.certificates.findings import Finding, Level
from relay.tls.certificates.lint import lint
from relay.tls.ciphers import lint_ciphers
from relay.tls.contexts import build_generation
from relay.tls.lint_key_suites import lint_key_suites
from relay.tls.lint_staples import lint_staples
from relay.tls.revocation.lint_lists import lint_lists

CHECK_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found."""

    findings: list[Finding]
    problems: list[Problem]

    @property
    def count(self) -> int:
        """How many problems there are; warnings do not count."""
        errors = [one for one in self.findings if one.level is Level.ERROR]
        return len(errors) + len(self.problems)

    @property
    def would_start(self) -> bool:
        """Whether a start without --strict would accept this configuration."""
        lasting = [one for one in self.findings if one.level is Level.ERROR and not one.temporary]
        return not self.problems and not lasting


def check_all(loaded: Loaded, *, strict: bool = False, offline: bool = False) -> CheckReport:
    """Check the certificates, ciphers, owners, addresses and directories.

    `offline`: only the files, not this machine: no address, name, user or directory.
    A start waits for a name that does not resolve yet, and a strict one refuses it.
    """
    config, places = loaded.config, loaded.places
    now = datetime.now(UTC)
    files = Files()
    findings = lint(config, now, files) + lint_ciphers(config)
    lists = lint_lists(config, now, files, partial(fetched_lists, config), {})
    findings += lists.findings + lists.dates
    findings += lint_key_suites(config, files)
    findings += lint_staples(config, now, files)
    findings += _open_balancers(config)
    problems = list(_context_problems(config, findings))
    problems += read_password(config)[1]
    if not offline:
        findings += _machine_findings(loaded)
        findings += _unresolved(config, Level.ERROR if strict else Level.WARNING)
        problems += _machine_problems(config)
    findings += [
        Finding(Level.INFO, "", "", each.what, each.remedy, each.where, place=each.place)
        for each in loaded.without_match
    ]
    return CheckReport(
        [_located(places, one) for one in findings],
        places.locate(problems),
    )


def _located(places: Places, one: Finding) -> Finding:
    (problem,) = places.locate([Problem(one.where, one.what, one.remedy, place=one.place)])
    return replace(
        one,
        where=problem.where,
        what=problem.what,
        remedy=problem.remedy,
        place=problem.place,
        file=places.mask(one.file),
        subject=places.mask(one.subject),
    )


def _machine_findings(loaded: Loaded) -> list[Finding]:
    """What is only true on this machine: owners of files, and what runs on it."""
    config = loaded.config
    findings = check_owners(loaded)
    findings += openssl_conf_findings(os.environ.get("OPENSSL_CONF", ""))
    findings += _restart_warnings(config, _Running.ask(config.relay.state_dir))
    return findings


def _unresolved(config: Config, level: Level) -> Iterator[Finding]:
    failed = failed_hosts(look_up_all(hosts_of(config), look_up), {})
    for one in unresolved_backends(config, failed):
        yield Finding(
            level, "", "", one.what, one.remedy, one.where, temporary=True, place=one.place
        )


def _machine_problems(config: Config) -> Iterator[Problem]:
    try:
        refuse_without_needed_calls()
    except StartupError as error:
        yield Problem("this machine", error.what, error.hint)
    try:
        yield from access_log_problems(config, find_identity(config.relay))
    except StartupError as error:
        key, _, what = error.what.partition(": ")
        yield Problem(key, what, error.hint)
    yield from find_peer_users(config)[1]
    yield from _state_dir_problems(config)
    yield from missing_sources(config)
    yield from _address_problems(config, _Running.ask(config.relay.state_dir))


def openssl_conf_findings(file: str) -> Iterator[Finding]:
    """What to know about the operator's own configuration of OpenSSL, "" for none."""
    if not file:
        return
    where = "OPENSSL_CONF"
    try:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        what = f"cannot be read, so OpenSSL runs without settings: {error.strerror}"
        yield Finding(Level.WARNING, file, "", what, "correct OPENSSL_CONF", where)
        return
    if "NumTickets" not in text:
        what = (
            "is used in place of the relay's own settings, so a TLS 1.3 client gets two tickets;"
            " the second one costs 36 µs of CPU per full handshake"
        )
        remedy = "set NumTickets = 1 in the section that system_default names"
        yield Finding(Level.INFO, file, "", what, remedy, where)


def _context_problems(config: Config, findings: list[Finding]) -> Iterator[Problem]:
    """Build every TLS context. A key path with an error is not reported twice."""
    errors = [one for one in findings if one.level is Level.ERROR]
    reported = {where for finding in errors for where in finding.where.split(", ")}
    try:
        build_generation(config, 0)
    except ConfigError as error:
        yield from (problem for problem in error.problems if problem.where not in reported)


def _state_dir_problems(config: Config) -> Iterator[Problem]:
    try:
        check_state_dir(config.relay.state_dir)
    except StartupError as error:
        yield Problem(
            "relay.state_dir", error.what, _own_check(config.relay.state_dir) + error.hint
        )


def _own_check(state_dir: Path) -> str:
    """What root does if a unit starts the relay as another user."""
    try:
        owner = state_dir.stat().st_uid
        name = pwd.getpwuid(owner).pw_name
    except (OSError, KeyError):
        return ""
    if not owner or os.geteuid():
        return ""
    return f"if {name} starts the relay: runuser -u {name} -- relay check; otherwise "


@dataclass(frozen=True, slots=True)
class _Running:
    """The addresses of the relay that runs with this state_dir, if there is one."""

    listeners: tuple[str, ...] = ()
    admin: str = ""

    @classmethod
    def ask(cls, state_dir: Path) -> _Running:
        try:
            status = ask(state_dir, "status", CHECK_PATIENCE_S)
        except ControlError:
            return cls()
        return cls(
            tuple(address for addresses in status["listeners"].values() for address in addresses),
            status["admin"],
        )


def _address_problems(config: Config, running: _Running) -> Iterator[Problem]:
    """Listen on every address for a moment, except on the running relay's."""
    wanted = [(one.where, one.address, one.freebind) for one in listen_addresses(config)]
    if config.admin.listen:
        wanted.append(("admin.listen", config.admin.listen, False))
    for where, address, freebind in wanted:
        if any(conflict(address, held) for held in (*running.listeners, running.admin)):
            continue
        try:
            if path := unix_path(address):
                check_unix(where, Path(path))
            else:
                open_single_listener(where, address, freebind=freebind).close()
        except StartupError as error:
            yield Problem(where, error.what.removeprefix(f"{where}: "), error.hint)


def _restart_warnings(config: Config, running: _Running) -> Iterator[Finding]:
    """Addresses that a start can take, but a reload of the running relay cannot."""
    # Listeners share a port with the generation before. The admin process shares it
    # with none.
    wanted: list[tuple[str, str, tuple[str, ...]]] = [
        (one.where, one.address, (running.admin,)) for one in listen_addresses(config)
    ]
    if config.admin.listen != running.admin:
        wanted.append(("admin.listen", config.admin.listen, (running.admin, *running.listeners)))
    for where, address, others in wanted:
        for held in others:
            if conflict(address, held):
                holder = "the running relay"
                if held == running.admin:
                    holder += "'s own admin process"
                what = f"a reload cannot listen on {address} while {holder} listens on {held}"
                yield Finding(Level.WARNING, "", "", what, RESTART_OR_MOVE, where)


def _open_balancers(config: Config) -> Iterator[Finding]:
    """Listeners where every client may claim any address."""
    paths = listener_paths([each.name for each in config.listener])
    for where, listener in zip(paths, config.listener, strict=True):
        for index, entry in enumerate(listener.accept_proxy.from_ if listener.accept_proxy else ()):
            if entry.endswith("/0"):
                what = f"{entry} is every address, so any client can claim to be any other"
                remedy = "name the balancers only"
                path = f"{where}.accept_proxy.from[{index}]"
                yield Finding(Level.WARNING, "", "", what, remedy, path)

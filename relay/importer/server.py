"""What a relay has once: its user, its access log, its time limits, its admin page.

Never: makes a listener or a pool.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from relay.errors import ConfigError
from relay.importer.access import is_page
from relay.importer.hosts import Host
from relay.importer.machine import Machine
from relay.importer.material import origin
from relay.importer.parameters import seconds
from relay.importer.parser import Parser
from relay.importer.paths import path_of
from relay.importer.report import Report, Verdict
from relay.importer.text import split_words
from relay.importer.toml import Table
from relay.importer.tree import Directive, Scope, walk
from relay.logs.apache_format import DIRECTIVES, apache_renderer

_USERS = ("relay", "www-data", "apache", "wwwrun", "http", "nobody")
_LEVELS = {
    **dict.fromkeys(("emerg", "alert", "crit", "error"), "error"),
    "warn": "warning",
    "notice": "info",
    "info": "info",
    "debug": "debug",
}
_NICKNAMES = {"common", "combined"}
_STRFTIME = re.compile(r"%(?![aAbBCdFgGhHIjmMpSTuUVwWyYz%])")
_FIELD = re.compile(r"%[<>]?(?:[!0-9,]*)(?:\{[^}]*\})?[A-Za-z]|%%")


def process_table(root: Sequence[Directive], machine: Machine, report: Report) -> Table:
    """`[relay]`: users, and how long a stop may take."""
    table = Table("[relay]")
    scope = Scope(root)
    user, group = scope.last("user"), scope.last("group")
    if user is not None and not user.value.startswith("#") and machine.has_user(user.value):
        table.put("user", user.value, origin(user))
        report.say(user, Verdict.SAME, "user of [relay]")
        if group is not None and not group.value.startswith("#") and machine.has_group(group.value):
            table.put("group", group.value, origin(group))
            report.say(group, Verdict.SAME, "group of [relay]")
    elif machine.is_root:
        found = next(filter(machine.has_user, _USERS), "")
        if found:
            table.put("user", found, "by hand: choose the user of the workers")
        else:
            table.off("user", "relay", "by hand: useradd --system relay")
    for each in (user, group):
        reason = "this machine does not have it by this name; choose one for relay"
        report.say(each, Verdict.BY_HAND, reason)
    stop = scope.last("gracefulshutdowntimeout")
    if stop is not None and (found_s := seconds(stop.value)):
        table.put("drain_timeout_s", found_s, origin(stop))
        report.say(stop, Verdict.SAME, "drain_timeout_s")
    return table


def timeouts_table(
    hosts: Sequence[Host], root: Sequence[Directive], connect_s: float, report: Report
) -> Table:
    """`[timeouts]`."""
    table = Table("[timeouts]")
    scopes = [Scope(root), *(host.scope for host in hosts)]
    found: list[tuple[float, Directive]] = []
    for scope in scopes:
        for name in ("timeout", "keepalivetimeout"):
            mine = [(seconds(each.value), each) for each in scope.own if each.name == name]
            found += [(value, each) for value, each in mine if value]
    if found:
        longest = max(found, key=lambda each: each[0])
        table.put("idle_s", longest[0], origin(longest[1]))
        for _, each in found:
            report.say(each, Verdict.SAME, f"idle_s, the longest of them: {longest[0]:g}")
    if connect_s:
        table.put("connect_s", connect_s, "connectiontimeout=, the longest of them")
    for scope in scopes:
        for each in scope.own:
            if each.name != "requestreadtimeout":
                continue
            match = re.search(r"handshake=([0-9]{1,5})", each.rest)
            if match and int(match[1]):
                table.put("hello_s", int(match[1]), origin(each))
                table.put("handshake_s", int(match[1]))
            report.say(each, Verdict.BETTER, "hello_s and handshake_s; the rest is the backends'")
    return table


# Logs.


def log_table(
    hosts: Sequence[Host],
    root: Sequence[Directive],
    user: str,
    parser: Parser,
    machine: Machine,
) -> Table:
    """`[log]`: one access log, that of the first virtual host that has one."""
    report, table = parser.report, Table("[log]")
    scopes = [*(host.scope for host in hosts), Scope(root)]
    level = next((found for each in scopes if (found := each.last("loglevel"))), None)
    if level is not None:
        words = [each for each in level.args if ":" not in each]
        known = _LEVELS.get(words[0].lower() if words else "warn", "debug")
        table.put("level", known, origin(level))
        report.say(level, Verdict.SAME, f'level = "{known}"')
    formats = {
        each.arg(1).lower(): each.value
        for each in walk(list(root))
        if each.name == "logformat" and len(each.args) > 1
    }
    logs = [
        each
        for scope in scopes
        for each in scope.own
        if each.name in {"customlog", "transferlog", "globallog"}
    ]
    if not logs:
        return table
    # A format with facts of TLS says more about a connection than one of requests.
    by_tls = [each for each in logs if "SSL_" in _format_of(each, formats)]
    shape = (by_tls or logs)[0]
    if shape is not logs[0]:
        reason = "relay has one access log; this format was taken, and the first one's file"
        report.say(shape, Verdict.BY_HAND, reason)
    for each in logs[1:]:
        report.say(each, Verdict.LOST, "relay has one access log; filter its lines by route")
    _access(table, logs[0], _format_of(shape, formats), user, parser, machine)
    return table


def _format_of(directive: Directive, formats: dict[str, str]) -> str:
    given = directive.arg(1)
    if directive.name == "transferlog" or not given:
        return "common"
    if given.lower() in _NICKNAMES:
        return given.lower()
    return formats.get(given.lower(), given)


def _access(
    table: Table, log: Directive, text: str, user: str, parser: Parser, machine: Machine
) -> None:
    report, verdict, words = parser.report, Verdict.SAME, ["access and access_format"]
    path, rotate_s, why = _where(log.value, parser)
    if why:
        verdict, words = Verdict.BY_HAND, [why]
    if path and not machine.can_log(path, user):
        verdict = Verdict.BY_HAND
        words.append(f"{path} cannot be written here, so it is stdout; make its directory")
        table.off("access", path, "by hand: its directory must exist, and be writable for user")
        path, rotate_s = "", 0
    table.put("access", path or "-", origin(log))
    if rotate_s and rotate_s != 43_200:
        table.put("access_rotate_s", rotate_s)
    written, lost = _supported(text)
    table.put("access_format", written)
    if lost:
        verdict = Verdict.BY_HAND
        words.append(f"relay does not see {' '.join(lost)}, so the lines have - there")
    if any(each.lower().startswith(("env=", "expr=")) for each in log.args[2:]):
        verdict = Verdict.BY_HAND
        words.append("every connection is logged; filter the lines")
    if verdict is Verdict.SAME and path and "%" in path:
        verdict = Verdict.BETTER
    report.say(log, verdict, "; ".join(words))


def _where(text: str, parser: Parser) -> tuple[str, int, str]:
    """Path, seconds between rotations (0: none), and what is to be done by hand."""
    if not text.startswith("|"):
        return parser.resolve(text.replace("%", "%%")), 0, ""
    words = split_words(text.lstrip("|$ "))
    program = words[0].rpartition("/")[2] if words else ""
    if program not in {"rotatelogs", "rotatelogs2", "cronolog"}:
        return "", 0, f"relay writes to stdout or a file, not into {program or 'a program'}"
    rest: list[str] = []
    skip = False
    for word in words[1:]:
        if skip or word.startswith("-"):
            skip = not skip and word in {"-L", "-p", "-n"}
            continue
        rest.append(word)
    if not rest:
        return "", 0, "it has no file name; write access"
    path, why = parser.resolve(rest[0]), ""
    if "%" not in path:
        path, why = f"{path}.%Y%m%d", "the name has no date, so one was added"
    elif _STRFTIME.search(path):
        return "", 0, f"{rest[0]} has fields that relay does not know; write access"
    every = rest[1] if len(rest) > 1 else ""
    if every.isdecimal() and int(every[:9]) > 0 and len(every) < 9:
        return path, int(every), why
    return path, 0, why or ("rotation by size is not possible, it is by date" if every else "")


def _supported(text: str) -> tuple[str, list[str]]:
    """The format with "-" in place of the fields that relay does not have."""
    if text in {*_NICKNAMES, "json"}:
        return text, []
    lost: list[str] = []

    def known(match: re.Match[str]) -> str:
        plain = re.sub(r"^%[<>!0-9,]*", "%", match[0])
        if plain in {"%%", "%t"} or plain in DIRECTIVES:
            return plain
        if re.fullmatch(r"%\{[^}]*\}t", plain):
            return "%t"
        lost.append(match[0])
        return "-"

    written = _FIELD.sub(known, text)
    try:
        apache_renderer(written)
    except ConfigError:
        return "json", ["the whole format"]
    return written, lost


# The page.


def admin_table(hosts: Sequence[Host], root: Sequence[Directive], report: Report) -> Table:
    """`[admin]`, if httpd served /balancer-manager or /server-status."""
    table = Table("[admin]")
    every = [each for scope in (Scope(root), *(h.scope for h in hosts)) for each in walk(scope.own)]
    for section in every:
        if section.name not in {"location", "locationmatch"} or not is_page(section):
            continue
        reason = (
            f"{path_of(section)} has its own address, listen of [admin], and /metrics beside it"
        )
        report.say(section, Verdict.BETTER, reason)
        table.put("listen", "127.0.0.1:9180", origin(section))
        for each in section.children:
            kind = each.value.lower()
            asks = each.name in {"require", "authtype", "authuserfile", "authname"}
            if each.name == "require" and kind in {"ip", "host"}:
                reason = (
                    "listen is a loopback address; set listen and user to reach it from elsewhere"
                )
                report.say(each, Verdict.BY_HAND, reason)
            elif asks and kind not in {"all", "local"}:
                if "user" not in table.values:
                    table.values["user"] = ""
                    table.off("user", "admin", "by hand, with the next key")
                    table.off("password_file", "ssl/admin.password", "relay password > FILE")
                reason = "user and password_file of [admin]; `relay password` makes the file"
                report.say(each, Verdict.BY_HAND, reason)
            else:
                report.say(each, Verdict.BETTER, "the page is not on the listener")
    return table

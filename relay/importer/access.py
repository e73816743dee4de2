"""Rules of a virtual host about its clients, as `allow` and `deny` of a route.

What cannot be one of these lists fails closed: the route then has an `allow` that
matches nobody, until the operator has written it.

Never: makes a rule about certificates wider than it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from relay.importer.expressions import (
    ALWAYS,
    NotPossibleError,
    Rule,
    both,
    either,
    negated,
    parse_rule,
)
from relay.importer.hosts import Host
from relay.importer.report import Report, Verdict
from relay.importer.tree import Directive, walk

NOBODY = Rule({"cn": ["BY HAND: write who is allowed"]})
NOT_JUDGED = "relay does not judge this rule any more"
_CONTAINERS = {"requireall", "requireany", "requirenone"}
_RULES = {"require", "sslrequire", *_CONTAINERS}
_CERTIFICATE = {"ssl", "ssl-verify-client", "all"}
_PER_REQUEST = {"if", "elseif", "else", "limit", "limitexcept", "files", "filesmatch"}
_PAGES = {"balancer-manager", "server-status", "server-info"}


def path_of(section: Directive) -> str:
    """The path of a <Location>, as a pattern for <LocationMatch>."""
    args = [each for each in section.args if each != "~"]
    return args[0] if args else ""


def is_every_path(text: str) -> bool:
    """Whether a path or pattern stands for all requests."""
    return re.sub(r"[\^$()]|\.\*|/\?", "", text) in {"", "/"}


def is_page(section: Directive) -> bool:
    """Whether httpd serves one of its own pages there, such as /balancer-manager."""
    handlers = {each.value.lower() for each in section.children if each.name == "sethandler"}
    return bool(handlers & _PAGES)


def whole_sections(host: Host) -> Iterator[Directive]:
    """The sections that hold for every request that is passed on."""
    for each in (*host.scope.server, *host.scope.own):
        if (
            each.name in {"location", "locationmatch"}
            and is_every_path(path_of(each))
            and not is_page(each)
        ) or (each.name in {"proxy", "proxymatch"} and each.children):
            yield each


def rule_of(host: Host, pool_url: str, report: Report) -> Rule:
    """The rule for the clients of a virtual host whose requests go to this balancer."""
    fake = any(
        "+fakebasicauth" in {arg.lower() for arg in each.args}
        for each in walk(list(host.scope.own))
        if each.name == "ssloptions"
    )
    found = ALWAYS
    for section in whole_sections(host):
        if section.name.startswith("proxy") and not _is_for(section, pool_url):
            continue
        report.say(section, Verdict.SAME, "it holds for the whole route")
        found = _rules(section.children, found, report, fake=fake)
    return _rules(host.scope.own, found, report, fake=fake)


def _is_for(section: Directive, pool_url: str) -> bool:
    url = section.value.lower().rstrip("/")
    return url in {"*", ".*"} or (pool_url != "" and url == pool_url.lower())


def _rules(directives: Sequence[Directive], before: Rule, report: Report, *, fake: bool) -> Rule:
    """Add the rules among these: each SSLRequire, and one of the Require lines."""
    found = before
    conditions = [[each] for each in directives if each.name == "sslrequire"]
    conditions.append([each for each in directives if each.name in _RULES - {"sslrequire"}])
    for condition in filter(None, conditions):
        lines = list(walk(condition))
        try:
            rule = _any_of(condition, report, fake=fake)
            found = both(found, rule)
        except NotPossibleError as error:
            reason = f"{error}; nobody is admitted until you have written allow"
            for each in lines:
                report.say(each, Verdict.BY_HAND, reason)
            return NOBODY
        for each in lines:
            report.say(
                each, Verdict.SAME, _ALL if rule == ALWAYS else "allow and deny of the route"
            )
    return found


_ALL = "every client that is admitted has a verified certificate"


def _one(directive: Directive, report: Report, *, fake: bool) -> Rule:
    name = directive.name
    if name == "sslrequire":
        return parse_rule(directive.rest)
    if name == "requireall":
        found = ALWAYS
        for each in _inside(directive):
            found = both(found, _one(each, report, fake=fake))
        return found
    if name == "requireany":
        return _any_of(_inside(directive), report, fake=fake)
    if name == "requirenone":
        return negated(_any_of(_inside(directive), report, fake=fake))
    return _require(directive, report, fake=fake)


def _inside(directive: Directive) -> list[Directive]:
    return [each for each in directive.children if each.name in _RULES]


def _any_of(directives: Sequence[Directive], report: Report, *, fake: bool) -> Rule:
    """One of these must hold."""
    lines = [each for each in walk(directives) if each.name == "require"]
    unseen = [each for each in lines if _kind(each)[0] not in {*_CERTIFICATE, "expr"}]
    if len(directives) > 1 and unseen and len(unseen) < len(lines):
        raise NotPossibleError(f"it is one of several, and relay does not see {unseen[0].rest}")
    rules = [_one(each, report, fake=fake) for each in directives]
    found = rules[0] if rules else ALWAYS
    for rule in rules[1:]:
        found = either(found, rule)
    return found


def _kind(directive: Directive) -> tuple[str, str, bool]:
    """What a Require is about, its arguments, and whether it begins with `not`."""
    words = directive.rest.split(None, 1)
    is_not = bool(words) and words[0].lower() == "not"
    if is_not:
        words = words[1].split(None, 1) if len(words) > 1 else []
    return words[0].lower() if words else "", words[1] if len(words) > 1 else "", is_not


def _require(directive: Directive, report: Report, *, fake: bool) -> Rule:
    kind, rest, is_not = _kind(directive)
    if kind in _CERTIFICATE:
        if rest.strip().lower() == "denied" or is_not:
            raise NotPossibleError("it denies everybody")
        return ALWAYS
    if kind == "expr":
        rest = rest.strip()
        if rest[:1] in {'"', "'"} and rest.endswith(rest[0]) and rest[1:-1].count(rest[0]) == 0:
            rest = rest[1:-1]
        rule = parse_rule(rest)
        return negated(rule) if is_not else rule
    if fake and kind in {"valid-user", "user", "group"}:
        raise NotPossibleError("FakeBasicAuth lists the subjects in a file; write them as cn or ou")
    address = kind in {"ip", "host", "local", "forward-dns"}
    what = "the client's address" if address else "users or requests"
    remedy = "use a firewall" if address else "let the backends ask"
    report.say(directive, Verdict.LOST, f"relay does not judge {what}; {remedy}")
    report.note(f"{NOT_JUDGED}: {directive.text} of {directive.place}")
    return ALWAYS


def report_other_sections(directives: Sequence[Directive], report: Report) -> None:
    """The rules that hold for some requests only."""
    for section in walk(directives):
        partial = section.name in {"location", "locationmatch"} and not is_every_path(
            path_of(section)
        )
        if partial and not is_page(section):
            path = path_of(section)
            _lost(section, f"relay sees no paths, so {path} is like the rest", report)
        elif section.name in _PER_REQUEST:
            _lost(section, "relay sees no requests", report)
        elif section.name in {"directory", "directorymatch"}:
            _lost(section, "relay serves no files", report)


def _lost(section: Directive, why: str, report: Report) -> None:
    strict = [each for each in walk(section.children) if each.name in _RULES]
    remedy = "; let the backends check this rule" if strict else ""
    for each in strict:
        report.note(f"{NOT_JUDGED}: {each.text} of {each.place}")
    for each in (section, *walk(section.children)):
        if each.name not in _READ_INSIDE:
            report.say(each, Verdict.LOST, why + (remedy if each in strict else ""))


# `relay.importer.pools` says what becomes of these.
_READ_INSIDE = {"proxypass", "proxypassmatch", "sslverifyclient"}

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
from relay.importer.other_rules import (
    NOT_JUDGED,
    PER_REQUEST,
    RULES,
    by_certificate,
    is_closed,
    note_responders,
    refusing_rewrites,
)
from relay.importer.paths import is_every_path, may_match, path_of
from relay.importer.proxying import Target
from relay.importer.report import Report, Verdict
from relay.importer.tree import Directive, walk

NOBODY = Rule({"cn": ["BY HAND: write who is allowed"]})
_CERTIFICATE = {"ssl", "ssl-verify-client", "all"}
_ADDRESS = {"ip", "host", "local", "forward-dns"}
_OTHERS = re.compile(r"env|method|valid-user|(?:(?:file|ldap|dbm|dbd|unix)-)?[a-z]*(?:user|group)")
_PAGES = {"balancer-manager", "server-status", "server-info"}


def is_page(section: Directive) -> bool:
    """Whether httpd serves one of its own pages there, such as /balancer-manager."""
    handlers = {each.value.lower() for each in section.children if each.name == "sethandler"}
    return bool(handlers & _PAGES)


def _whole_sections(host: Host, target: Target) -> Iterator[Directive]:
    """The sections that hold for every request that is passed on to the target."""
    for each in (*host.scope.server, *host.scope.own):
        if each.name in {"location", "locationmatch"}:
            if _holds_below(each, target.path) and not is_page(each):
                yield each
        elif each.name in {"proxy", "proxymatch"} and each.children and _is_for(each, target):
            yield each
        elif each.name == "directory" and each.value.lower().startswith("proxy:"):
            yield each  # httpd 1.3's form of <Proxy *>


def _holds_below(section: Directive, path: str) -> bool:
    """Whether it holds for all requests below a path, as far as one can tell."""
    pattern = path_of(section)
    if is_every_path(pattern):
        return True
    start = re.match(r"\^?(/[\w/-]*)", path)  # of a path, or of the pattern of one
    below = start[1].rstrip("/") if start else ""
    below += "/relay/import"  # like any request there
    if section.name == "locationmatch" or "~" in section.args:
        return may_match(pattern, below)
    if "*" in pattern or "?" in pattern:
        pattern = re.split(r"[*?]", pattern)[0]
        return below.startswith(pattern)
    return f"{below}/".startswith(pattern.rstrip("/") + "/")


def rule_of(host: Host, target: Target, report: Report) -> Rule:
    """The rule for the clients of a virtual host whose requests go to this target."""
    scope = host.scope
    lines = list(walk([*scope.server, *scope.own]))
    fake = any(
        each.name == "sslusername"
        or (each.name == "ssloptions" and "fakebasicauth" in each.rest.lower())
        for each in lines
    )
    found = ALWAYS
    sections = list(_whole_sections(host, target))
    for section in sections:
        report.say(section, Verdict.SAME, "it holds for the whole route")
        found = _rules(section.children, found, report, fake=fake)
    found = _rules(scope.own, found, report, fake=fake)
    partial = {"location", "locationmatch", "proxy", "proxymatch", "directory", "directorymatch"}
    hidden = by_certificate(
        [
            each
            for each in (*scope.server, *scope.own)
            if each in sections or each.name not in partial
        ],
        scope,
    )
    for each in hidden:
        reason = "it looks at the certificate in a way for which relay has no list"
        report.say(
            each, Verdict.BY_HAND, f"{reason}; nobody is admitted until you have written allow"
        )
        found = NOBODY
    refusing_rewrites(scope.own, report)
    note_responders(scope, host.label, report)
    if found == NOBODY:
        report.note(f"{host.label}: nobody is admitted until you have written allow of its route")
    return found


def _is_for(section: Directive, target: Target) -> bool:
    """Whether a <Proxy> may hold for the URL of the target."""
    if target.url is None:
        return False
    base = f"{target.url.scheme}://{target.url.host.lower()}"
    urls = {base, f"{base}:{target.url.port}"}
    pattern = path_of(section)
    if section.name == "proxymatch" or "~" in section.args:
        return may_match(pattern, *urls, *(f"{url}/relay" for url in urls))
    if match := re.fullmatch(r"([\w+.-]+://[^/*?]*)(/.*)?", pattern):
        begins = not match[2] and any(url.startswith(match[1].lower()) for url in urls)
        return begins or match[1].lower() in urls  # httpd compares beginnings
    start = re.split(r"[*?]", pattern.lower())[0]
    return any(url.startswith(start) for url in urls)


def _rules(directives: Sequence[Directive], before: Rule, report: Report, *, fake: bool) -> Rule:
    """Add the rules among these: each SSLRequire, and one of the Require lines."""
    found = before
    if is_closed(directives, report):
        reason = "it denies everybody; nobody is admitted until you have written allow"
        for each in directives:
            if each.name in {"order", "allow", "deny"}:
                report.say(each, Verdict.BY_HAND, reason)
        return NOBODY
    conditions = [[each] for each in directives if each.name == "sslrequire"]
    conditions.append([each for each in directives if each.name in RULES - {"sslrequire"}])
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
            report.say(each, Verdict.SAME, _ALL if rule == ALWAYS else _LISTS)
    return found


_ALL = "every client that is admitted has a verified certificate"
_LISTS = "allow and deny of the route; relay compares every name of a kind, httpd one of them"


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
    return [each for each in directive.children if each.name in RULES]


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
    address = kind in _ADDRESS
    if fake and not address and kind not in {"env", "method"}:
        raise NotPossibleError(
            "the user is the subject (FakeBasicAuth, SSLUserName); write the clients as cn or ou"
        )
    if not address and not _OTHERS.fullmatch(kind):
        raise NotPossibleError(f"the importer does not know what {kind or 'nothing'} is")
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
        elif section.name in PER_REQUEST:
            _lost(section, "relay sees no requests", report)
        elif section.name in {"directory", "directorymatch"}:
            _lost(section, "relay serves no files", report)


def _lost(section: Directive, why: str, report: Report) -> None:
    inside = list(walk(section.children))
    strict = [each for each in inside if each.name in RULES or _is_address_rule(each)]
    if section.name in _OF_FILES:  # not for requests that are passed on
        strict = []
    strict = [each for each in strict if each.rest.lower() != "all granted"]
    remedy = "; let the backends check this rule" if strict else ""
    for each in strict:
        if not report.has(each):
            report.note(f"{NOT_JUDGED}: {each.text} of {each.place}")
    for each in (section, *walk(section.children)):
        if each.name not in _READ_INSIDE:
            report.say(each, Verdict.LOST, why + (remedy if each in strict else ""))


_OF_FILES = {"directory", "directorymatch", "files", "filesmatch"}


def _is_address_rule(each: Directive) -> bool:
    return each.name in {"allow", "deny"} and each.rest.lower().split() != ["from", "all"]


# `relay.importer.pools` says what becomes of these.
_READ_INSIDE = {"proxypass", "proxypassmatch", "sslverifyclient"}

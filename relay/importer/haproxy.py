"""A `mode tcp` configuration of HAProxy with TLS on both sides, as one of relay.

Never: makes a rule wider than it was: a frontend with rules admits nobody at first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from relay.config.address import host_name_fault
from relay.importer.access import NOBODY
from relay.importer.build import Imported, finish, listen_table
from relay.importer.haproxy_parser import HaproxyParser, last
from relay.importer.haproxy_servers import ServerMaker
from relay.importer.haproxy_tls import with_defaults
from relay.importer.machine import Machine
from relay.importer.material import Material, origin
from relay.importer.names import parse_address, safe_name
from relay.importer.pool_tables import FoundName
from relay.importer.report import Verdict
from relay.importer.tls_settings import VERSIONS, put_cipher_lists
from relay.importer.toml import Table
from relay.importer.tree import Directive, walk

# The words of `bind` that are followed by a value.
_WORDS = (
    "crt crt-list ca-file crl-file verify ssl-min-ver ssl-max-ver ciphers ciphersuites "
    "curves alpn npn name interface mode user group uid gid level maxconn backlog nice "
    "process thread tcp-ut mss namespace id ca-verify-file ca-sign-file ecdhe "
    "ca-ignore-err crt-ignore-err"
)
_BIND_VALUES = frozenset(_WORDS.split())
_SNI = re.compile(r"(?:ssl_fc_sni|req\.ssl_sni|req_ssl_sni)(_end)?$")
_NO_TCP = re.compile(r"/|(?:unix|uxst|abns|abnsz|fd|sockpair|quic[46])@")
_LOOKS = re.compile(r"\bssl_c_").search
_DECIDES = ("tcp-request", "http-request", "tcp-response", "block", "reqdeny")
_SEEN = {
    "log": (Verdict.BETTER, "access of [log]: one JSON line per connection, with the reason"),
    "option": (Verdict.SAME, "nothing to set, or see [log] and [pool.NAME.health]"),
    "mode": (Verdict.SAME, "mode tcp: relay moves the bytes of connections"),
    "acl": (Verdict.SAME, "read where it is used"),
    "stats": (Verdict.BETTER, "[admin]: /metrics, /balancer-manager, and relay status"),
    "maxconn": (Verdict.BETTER, "connections of [limits], per worker"),
    "timeout": (Verdict.SAME, "idle_s, connect_s and handshake_s"),
    "retries": (Verdict.SAME, "every usable backend is tried, until one accepts"),
    "nbthread": (Verdict.BETTER, "workers; one per CPU is enough"),
    "daemon": (Verdict.SAME, "systemd runs it"),
    "chroot": (Verdict.BETTER, "workers see only their files; see docs/operation.md"),
}


def convert_haproxy(
    parser: HaproxyParser, machine: Machine, names: Mapping[tuple[str, int], FoundName]
) -> Imported:
    """Make relay.toml from what the parser has read."""
    report = parser.report
    material = Material(machine, lambda path: path, report)
    servers = ServerMaker(parser, material, names)
    listeners: list[Table] = []
    taken: dict[str, object] = {}
    for section in parser.sections:
        if section.name in {"frontend", "listen"}:
            listeners += _frontend(section, parser, machine, material, servers, taken)
    tables = [_process(parser, machine), *servers.timeouts(), *listeners]
    _report_the_rest(parser)
    found = tables if listeners else []
    return finish("import-haproxy", found, servers.pools, material, parser.files, servers.wanted())


def _frontend(
    section: Directive,
    parser: HaproxyParser,
    machine: Machine,
    material: Material,
    servers: ServerMaker,
    taken: dict[str, object],
) -> list[Table]:
    """The listener of a frontend with its routes; nothing if it cannot be one."""
    report, settings = parser.report, parser.settings(section)
    mode = last(settings, "mode")
    if mode is not None and mode.value.lower() == "http":
        reason = "mode http looks into requests; relay moves connections: keep HAProxy for it"
        report.say(section, Verdict.LOST, reason)
        for each in section.children:
            report.say(each, Verdict.LOST, "its frontend has mode http")
        return []
    binds = [each for each in section.children if each.name == "bind"]
    secure = [each for each in binds if "ssl" in each.args and not _NO_TCP.match(each.value)]
    for each in binds:
        if each not in secure:
            reason = "it has no ssl: relay has no plain TCP; see mode = passthrough of a route"
            if "ssl" in each.args:
                reason = "relay listens on TCP only"
            report.say(each, Verdict.LOST, reason)
    closed = _decides(section, parser)
    targets = _targets(section, parser)
    if not secure or not targets:
        report.say(section, Verdict.LOST, "it has no bind with ssl, or no backend with a server")
        return []
    bind = secure[0]
    name = safe_name(section.value or "https", taken)
    taken[name] = section
    alike = [each for each in secure if _values(each) == _values(bind)]
    addresses = [
        found
        for each in alike
        for text in each.value.split(",")
        if (found := parse_address(re.sub("^ipv[46]@", "", text), report, each))
        if found.port
    ]
    if not addresses:
        report.say(section, Verdict.LOST, "its first bind has no address that relay listens on")
        return []
    listener = listen_table(name, addresses, machine, report)
    if "accept-proxy" in bind.args:
        listener.off("accept_proxy", {"from": ["192.0.2.0/24"]}, "by hand: who sends the headers")
        report.note(f"{bind.place}: accept-proxy: write the balancers into accept_proxy")
    client = last(settings, "timeout", "client")
    if client is not None and (idle := servers.seconds(client.arg(1))):
        listener.put("idle_s", idle, origin(client))
    for other in secure[1:]:
        if _values(other) != _values(bind):
            reason = "not in listen: its settings differ from the first bind; write a listener"
            report.say(other, Verdict.BY_HAND, reason)
    routes = []
    for sni, target, line in targets:
        table = Table("[[listener.route]]")
        if sni:
            table.put("sni", sni, origin(line))
        table.put("pool", servers.pool(target, line), origin(line))
        _tls(table, bind, with_defaults(parser, "bind", _values(bind)), material, name)
        if _decides(target, parser) or closed:
            report.note(f"{name}: nobody is admitted until you have written allow of its route")
            table.put("allow", NOBODY.allow, "by hand: see tcp-request in the report")
        routes.append(table)
    report.say(section, Verdict.SAME, "a [[listener]]")
    return [listener, *routes]


def _decides(section: Directive, parser: HaproxyParser) -> bool:
    """Whether a frontend or backend has rules about who may come in."""
    found = [each for each in parser.settings(section) if each.name in _DECIDES]
    rules = [each for each in found if "inspect-delay" not in each.args]
    acls = {each.value for each in section.children if each.name == "acl" and _LOOKS(each.rest)}
    for each in section.children:
        words = {word.strip("!") for word in each.args[1:]}
        if each.name == "use_backend" and (words & acls or _LOOKS(each.rest)):
            rules.append(each)
    for each in rules:
        reason = "write it as allow or deny; nobody is admitted until you have"
        parser.report.say(each, Verdict.BY_HAND, reason)
    return bool(rules)


def _targets(
    section: Directive, parser: HaproxyParser
) -> list[tuple[list[str], Directive, Directive]]:
    """Server names, the section with the servers, and the line that says so."""
    pools = {each.value: each for each in parser.sections if each.name in {"backend", "listen"}}
    acls: dict[str, list[str]] = {}
    for each in section.children:
        if each.name == "acl" and len(each.args) > 1:
            acls.setdefault(each.value, []).extend(_names(list(each.args[1:])))
    found, seen = [], set()
    for each in section.children:
        if each.name != "use_backend" or each.value not in pools:
            continue
        words = list(each.args[2:]) if each.arg(1) == "if" else []
        inside = words[1:-1] if words[:1] == ["{"] and words[-1:] == ["}"] else []
        sni = _names(inside) if inside else acls.get(words[0], []) if len(words) == 1 else []
        sni = [name for name in dict.fromkeys(sni) if name not in seen]
        if not sni:
            reason = "relay chooses by server name only; write the route"
            parser.report.say(each, Verdict.BY_HAND, reason)
            parser.report.note(f"{each.place}: {each.text}: its clients go to default_backend")
            continue
        seen |= set(sni)
        found.append((sni, pools[each.value], each))
        parser.report.say(each, Verdict.SAME, "a route with sni")
    default = last(parser.settings(section), "default_backend")
    if default is not None and default.value in pools:
        found.append(([], pools[default.value], default))
        parser.report.say(default, Verdict.SAME, "the route without sni")
    elif section.name == "listen" and any(each.name == "server" for each in section.children):
        found.append(([], section, section))
    return found


def _names(words: list[str]) -> list[str]:
    """The server names of `ssl_fc_sni -i a b`; none for any other condition."""
    match = _SNI.fullmatch(words[0]) if words else None
    if match is None:
        return []
    ends, names, at = bool(match[1]), [], 1
    while at < len(words):
        if words[at] == "-m":
            if words[at + 1 : at + 2] not in (["end"], ["str"]):
                return []
            ends = ends or words[at + 1] == "end"
            at += 1
        elif words[at] not in {"-i", "--"}:
            name = words[at].lower()
            if name.startswith("-") or host_name_fault(name.removeprefix(".")):
                return []
            names.append("*" + name if ends and name.startswith(".") else name)
            if (ends and not name.startswith(".")) or (not ends and name.startswith(".")):
                return []
        at += 1
    return names


def _values(bind: Directive) -> dict[str, str]:
    """The words of a bind line with their values; "" for words without one."""
    found: dict[str, str] = {}
    words = list(bind.args[1:])
    while words:
        word = words.pop(0)
        found[word] = words.pop(0) if word in _BIND_VALUES and words else ""
    return found


def _tls(
    table: Table, bind: Directive, given: dict[str, str], material: Material, name: str
) -> None:
    report = material.report
    crt = given.get("crt", "")
    made = material.pem(crt, f"{name}.pem")
    table.put("certificate", made[0], origin(bind))
    table.put("private_key", made[1])
    table.put("client_ca", given.get("ca-file") or material.placeholder("clients-ca.pem"))
    if given.get("crl-file"):
        table.put("client_crl", [given["crl-file"]])
    verdict, words = Verdict.SAME, []
    if given.get("verify") != "required":
        what = f"verify {given.get('verify') or 'none'}"
        report.note(f"{bind.place}: {what}; relay refuses clients without a certificate")
        verdict, words = Verdict.LOST, ["a client without a valid certificate is refused"]
    for key, word in (("min_version", "ssl-min-ver"), ("max_version", "ssl-max-ver")):
        if given.get(word, "").lower() in VERSIONS:
            table.put(key, VERSIONS[given[word].lower()])
    put_cipher_lists(table, given.get("ciphers", ""), given.get("ciphersuites", ""))
    if "no-tls-tickets" in given:
        table.put("session_tickets", False)
    if given.get("alpn"):
        table.off("alpn", given["alpn"].split(","), "by hand: if the backends speak it too")
    if "crt-list" in given or crt.endswith("/"):
        verdict = Verdict.BY_HAND
        words.append("several certificates: write one route for each, with its names in sni")
    report.say(bind, verdict, "; ".join(words) or "listen, and TLS of the route")


def _process(parser: HaproxyParser, machine: Machine) -> Table:
    table, report = Table("[relay]"), parser.report
    lines = [each for s in parser.sections if s.name == "global" for each in s.children]
    user, group = last(lines, "user"), last(lines, "group")
    if user is not None and machine.has_user(user.value) and machine.is_root:
        table.put("user", user.value, origin(user))
        report.say(user, Verdict.SAME, "user of [relay]")
        if group is not None and machine.has_group(group.value):
            table.put("group", group.value, origin(group))
            report.say(group, Verdict.SAME, "group of [relay]")
    elif machine.is_root:
        known = ("relay", "haproxy", "www-data", "nobody")
        found = next(filter(machine.has_user, known), "relay")
        table.put("user", found, "by hand: choose the user of the workers")
    return table


def _report_the_rest(parser: HaproxyParser) -> None:
    for each in walk(parser.sections):
        if each.children or each.name in {"global", "defaults"}:
            reason = "its lines follow" if each.name in {"global", "defaults"} else "not used"
            parser.report.say(each, Verdict.SAME, reason)
        found = _SEEN.get(each.name, (Verdict.BY_HAND, "the importer does not know this line"))
        parser.report.say(each, *found)

"""Virtual hosts with TLS, and the addresses at which clients reach them.

httpd chooses a virtual host by address first, then by name. relay has one listener for
the addresses that have the same virtual hosts, and its routes by name.

Never: looks at what a virtual host does with a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from relay.importer.names import ANY_PORT, Address, is_taken, parse_address, server_names
from relay.importer.report import Report, Verdict
from relay.importer.tree import Directive, Scope, walk

_STAYS = "it is in a virtual host without SSLEngine on, which stays with httpd"


@dataclass(eq=False, slots=True)
class Host:
    """One virtual host that terminates TLS."""

    section: Directive
    scope: Scope
    addresses: list[Address]
    names: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Its name in comments and messages."""
        return self.names[0] if self.names else self.section.value or "the server"


@dataclass(slots=True)
class Group:
    """Addresses that have the same virtual hosts: one listener."""

    listen: list[Address]
    hosts: list[Host]


def tls_hosts(root: Sequence[Directive], report: Report) -> list[Host]:
    """The virtual hosts with TLS, in the order of the file."""
    server = [each for each in root if each.name != "virtualhost"]
    found = []
    for section in root:
        if section.name != "virtualhost":
            continue
        scope = Scope(section.children, server)
        if not _has_tls(scope):
            reason = "it has no SSLEngine on; keep httpd for it, relay has no plain HTTP"
            report.say(section, Verdict.LOST, reason)
            for each in walk(section.children):
                report.say(each, Verdict.LOST, _STAYS)
            continue
        parsed = [parse_address(text, report, section) for text in section.args]
        host = Host(section, scope, [each for each in parsed if each] or [Address("*", ANY_PORT)])
        host.names = server_names(scope, report)
        found.append(host)
    if not found and (engine := Scope(server).last("sslengine")) and engine.is_on:
        listens = [
            parse_address(each.value, report, each) for each in Scope(server).every("listen")
        ]
        host = Host(engine, Scope(server), [each for each in listens if each])
        host.addresses = host.addresses or [Address("*", ANY_PORT)]
        host.names = server_names(host.scope, report)
        found.append(host)
    return found


def _has_tls(scope: Scope) -> bool:
    engine = scope.last("sslengine")
    if engine is not None:
        return engine.value.lower() in {"on", "optional"}
    # Without SSLEngine, httpd has TLS on a Listen with https, which 443 is by default.
    return any(each.name == "sslcertificatefile" for each in scope.own)


def listener_groups(
    hosts: Sequence[Host], root: Sequence[Directive], report: Report
) -> list[Group]:
    """The listeners that these virtual hosts need."""
    parsed = [parse_address(each.value, report, each) for each in root if each.name == "listen"]
    listens = [each for each in parsed if each is not None]
    groups: list[Group] = []
    for port in _ports(hosts, listens):
        sockets = [each for each in listens if each.port == port]
        for addresses, members in _groups_of_port(hosts, port, sockets, report):
            same = next((each for each in groups if each.hosts == members), None)
            if same is not None:
                same.listen += [each for each in addresses if each not in same.listen]
            elif members:
                groups.append(Group(addresses, members))
    used = {each.port for group in groups for each in group.listen}
    for directive in root:
        if directive.name == "listen":
            address = parse_address(directive.value, Report(), directive)
            if address and address.port in used:
                report.say(directive, Verdict.SAME, "listen of a [[listener]]")
            else:
                reason = "no virtual host with TLS is there; keep httpd for this port"
                report.say(directive, Verdict.LOST, reason)
    return groups


def _ports(hosts: Iterable[Host], listens: Iterable[Address]) -> list[int]:
    ports = [address.port for host in hosts for address in host.addresses]
    if ANY_PORT in ports:
        ports += [each.port for each in listens if each.port not in {80, 8080}] or [443]
    return [port for port in dict.fromkeys(ports) if port != ANY_PORT]


def _groups_of_port(
    hosts: Sequence[Host], port: int, sockets: list[Address], report: Report
) -> list[tuple[list[Address], list[Host]]]:
    """Pairs of addresses and their virtual hosts, for one port."""
    by_host: dict[str, list[Host]] = {}
    for host in hosts:
        for address in host.addresses:
            if address.port in {port, ANY_PORT}:
                mine = by_host.setdefault(address.host, [])
                if host not in mine:
                    mine.append(host)
    everywhere = by_host.pop("*", [])
    wildcard = Address("*", port)
    bound = [each.host for each in sockets if not each.is_wildcard]
    if not everywhere:
        return [([Address(ip, port)], members) for ip, members in by_host.items()]
    if not by_host and (not bound or wildcard in sockets):
        return [([wildcard], everywhere)]
    if bound and wildcard not in sockets:
        ips = list(dict.fromkeys([*bound, *by_host]))
        return [([Address(ip, port)], by_host.get(ip, everywhere)) for ip in ips]
    specific = list(dict.fromkeys(host for members in by_host.values() for host in members))
    for host in specific:
        what = f"on port {port} it has an address of its own beside virtual hosts of all addresses"
        remedy = "relay serves their names on all addresses; write one listener for each address"
        report.problem(host.section.place, what, remedy)
        report.note(f"{host.label}: {what}; {remedy}")
    return [([wildcard], specific + [each for each in everywhere if each not in specific])]


@dataclass(slots=True)
class Entry:
    """One route: a virtual host with the names that reach it; none is the default."""

    host: Host
    sni: list[str]
    is_default: bool = False


def entries_of(group: Group, report: Report) -> list[Entry]:
    """The routes of a listener, in relay's order. httpd's default is the first host."""
    taken: set[str] = set()
    entries = []
    for number, host in enumerate(group.hosts):
        names = [each for each in host.names if not is_taken(each, taken)]
        gone = [each for each in host.names if is_taken(each, taken)]
        if gone:
            what = f"an earlier virtual host of this address has {', '.join(gone)}"
            report.problem(host.section.place, what, "these names were left out, as in httpd")
        taken.update(names)
        if number == 0:
            entries.append(Entry(host, names, is_default=True))
        elif names:
            entries.append(Entry(host, names))
        else:
            reason = "no client can reach it: it has no ServerName of its own, and is not the first"
            report.say(host.section, Verdict.LOST, reason)
    strict = group.hosts[0].scope.last("sslstrictsnivhostcheck")
    if strict is not None and strict.is_on and entries[0].sni:
        report.say(strict, Verdict.SAME, "there is no route without sni")
        entries[0].is_default = False
        return entries
    if strict is not None:
        report.say(strict, Verdict.SAME, "the route without sni takes all other clients")
    first, *rest = entries
    later = {name for each in rest for name in each.sni}
    if any(is_taken(name, later) for name in first.sni):
        # A wildcard of a later one has a name of the first one, which goes before it.
        rest.insert(0, Entry(first.host, first.sni))
    return [*rest, first]

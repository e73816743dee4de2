"""The whole import: from directives to relay.toml, new files and a report.

Never: reads or writes a file itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from relay.importer.access import report_other_sections
from relay.importer.hosts import Group, Host, entries_of, listener_groups, tls_hosts
from relay.importer.machine import Machine
from relay.importer.material import Material
from relay.importer.names import Address, safe_name
from relay.importer.parser import Parser
from relay.importer.pool_tables import FoundName, Pool
from relay.importer.pools import PoolMaker
from relay.importer.proxying import balancers_of
from relay.importer.report import Report, Verdict
from relay.importer.routes import RouteMaker
from relay.importer.server import admin_table, log_table, process_table, timeouts_table
from relay.importer.toml import Table, comment_lines
from relay.importer.tree import Scope, walk
from relay.importer.verdicts import verdict_about


@dataclass(frozen=True, slots=True)
class WantedName:
    """A backend whose certificate --probe reads, and the files for it."""

    host: str
    port: int
    certificate: str
    key: str
    ca: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has made. `toml` is "" if there was nothing to import."""

    toml: str
    files: Mapping[str, bytes]
    report: Report
    read: Sequence[str]
    missing: Sequence[str] = ()
    backends: Sequence[WantedName] = field(default_factory=tuple)


def convert(
    parser: Parser, machine: Machine, names: Mapping[tuple[str, int], FoundName]
) -> Imported:
    """Make everything from what the parser has read."""
    report, root = parser.report, parser.root
    material = Material(machine, parser.resolve, report)
    maker = RouteMaker(material, report, PoolMaker(material, report, names))
    hosts = tls_hosts(root, report)
    listeners: list[Table] = []
    served: list[Host] = []
    taken: dict[str, object] = {}
    for group in listener_groups(hosts, root, report):
        routes = []
        for entry in entries_of(group, report):
            table = maker.make(entry)
            if table is not None:
                routes.append(table)
                served.append(entry.host)
        if routes:
            listeners += [_listener(group, machine, report, taken), *routes]
    report_other_sections(root, report)
    for host in hosts:
        if host not in served:
            for each in walk(host.section.children):
                report.say(each, Verdict.LOST, "its virtual host has no route")
    pools = maker.pools
    process = process_table(root, machine, report)
    tables = [
        process,
        admin_table(served, root, report),
        log_table(served, root, str(process.values.get("user", "")), parser, machine),
        timeouts_table(served, root, max((p.connect_s for p in pools.values()), default=0), report),
        *listeners,
    ]
    _report_the_rest(parser)
    wanted = [each for pool in pools.values() for each in wanted_of(pool)]
    return finish(
        "import-httpd", tables if listeners else [], pools, material, parser.files, wanted
    )


def finish(
    command: str,
    tables: list[Table],
    pools: Mapping[str, Pool],
    material: Material,
    read: list[str],
    wanted: list[WantedName],
) -> Imported:
    """The result: these tables and then the pools; without tables there is no text."""
    report = material.report
    every = list(tables)
    for pool in pools.values():
        every += [pool.table, *([pool.health] if pool.health else []), *pool.backends]
    top = head(command, read, material.missing, report.notes)
    body = "".join(each.render() for each in every if not each.is_empty)
    text = top + body.rstrip("\n") + "\n" if tables else ""
    return Imported(text, material.files, report, read, material.missing, wanted)


def listen_table(
    name: str, addresses: Sequence[Address], machine: Machine, report: Report
) -> Table:
    """A `[[listener]]` on these addresses."""
    table = Table("[[listener]]")
    table.put("name", name)
    table.put("listen", [text for each in addresses for text in _listen(each, machine)])
    away = [
        str(each)
        for each in addresses
        if not each.is_wildcard and not machine.has_address(each.host)
    ]
    if away:
        table.put("freebind", True, f"this machine does not have {', '.join(away)} now")
        report.note(
            f"listener {name}: this machine does not have {', '.join(away)}, so freebind is true;"
            " remove it when the address is there"
        )
    return table


def _listener(group: Group, machine: Machine, report: Report, taken: dict[str, object]) -> Table:
    port = group.listen[0].port
    name = safe_name("https" if port == 443 else f"https-{port}", taken)
    taken[name] = group
    table = listen_table(name, group.listen, machine, report)
    for host in group.hosts:
        proxy = host.scope.last("remoteipproxyprotocol")
        if proxy is not None and proxy.is_on:
            networks = {"from": ["192.0.2.0/24"]}
            table.off("accept_proxy", networks, "by hand: the balancers that send PROXY headers")
            break
    return table


def _listen(address: Address, machine: Machine) -> list[str]:
    if not address.is_wildcard:
        return [str(address)]
    both = [f"0.0.0.0:{address.port}", f"[::]:{address.port}"]
    return both if machine.has_ipv6 else both[:1]


def wanted_of(pool: Pool) -> list[WantedName]:
    """The backends of a pool, for --probe."""
    values = pool.table.values
    files = [
        str(values.get(key, "")) for key in ("machine_certificate", "machine_key", "backend_ca")
    ]
    found = []
    for backend in pool.backends:
        host, _, port = str(backend.values["address"]).rpartition(":")
        if port.isdecimal():
            found.append(WantedName(host.strip("[]"), int(port), *files))
    return found


def _report_the_rest(parser: Parser) -> None:
    """Every directive has a verdict: those of unused balancers, and of the table."""
    report = parser.report
    for section in parser.root:
        scope = Scope(section.children if section.name == "virtualhost" else parser.root)
        if section.name in {"virtualhost", "proxy"}:
            for balancer in balancers_of(scope).values():
                for each in balancer.sections:
                    report.say(each, Verdict.LOST, "no route uses this balancer")
                for member in balancer.members:
                    report.say(member.directive, Verdict.LOST, "no route uses this balancer")
    for each in walk(parser.root):
        report.say(each, *verdict_about(each.name))


def head(command: str, files: Sequence[str], missing: Sequence[str], notes: Sequence[str]) -> str:
    """The comment at the top of relay.toml."""
    made = (
        f"Made by `relay {command}`. Comments have the line and directive that each key comes from."
        " import-report.txt says what became of every line."
    )
    lines = [made, "Read: " + ", ".join(files)]
    if missing:
        lines += ["BY HAND: make these files, or write the paths of yours: " + ", ".join(missing)]
    lines += [f"NOTE: {each}" for each in notes]
    lines += ["Next: relay check --config relay.toml"]
    return "\n".join(line for text in lines for line in comment_lines(text)) + "\n\n"

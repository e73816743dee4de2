"""A virtual host as a route of relay: its pool, and its TLS with clients.

Never: makes a listener (see `importer.build`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from relay.config.address import is_ip
from relay.importer.access import NOBODY, is_page, report_other_sections, rule_of
from relay.importer.hosts import Entry, Host
from relay.importer.material import Material, origin
from relay.importer.names import safe_name
from relay.importer.parameters import verdict_of
from relay.importer.pool_tables import Pool
from relay.importer.pools import PoolMaker
from relay.importer.proxying import Balancer, Member, Target, Url, balancers_of, targets_of
from relay.importer.report import Report, Verdict
from relay.importer.tls_settings import put_ciphers, put_depth, put_groups, put_versions
from relay.importer.toml import Table
from relay.importer.tree import Directive, walk

_ADMISSION = ("client_ca", "client_crl", "crl", "allow", "deny", "max_chain_depth")
NO_MEMBER = "by-hand.invalid:443"


def _goes_to(url: Url) -> tuple[str, int]:
    return url.host.lower(), 0 if url.scheme == "balancer" else url.port


@dataclass(slots=True)
class RouteMaker:
    """Makes routes, and the pools that they need: equal ones only once."""

    material: Material
    report: Report
    maker: PoolMaker
    pools: dict[str, Pool] = field(default_factory=dict)
    _used: set[Directive] = field(default_factory=set)
    _seen: dict[tuple[str, str], tuple[str, set[str]]] = field(default_factory=dict)

    def make(self, entry: Entry) -> Table | None:
        """The route of a virtual host; None if it passes nothing on."""
        host = entry.host
        target = self._choose(host)
        if target is None:
            reason = "it passes no requests on to backends; keep httpd for it"
            self.report.say(host.section, Verdict.LOST, reason)
            return None
        pool = self._pool(host, target)
        table = Table("[[listener.route]]")
        table.remark(f"{host.section.text} of {host.section.place}")
        if entry.sni and not entry.is_default:
            table.put("sni", entry.sni, "ServerName, ServerAlias")
        elif entry.sni:
            table.off("sni", entry.sni, "to refuse all other names; httpd serves them here")
            for each in host.scope.own:
                if each.name in {"servername", "serveralias"}:
                    reason = "the route without sni: all names that no other route has come here"
                    self.report.say(each, Verdict.SAME, reason)
        table.put("pool", pool, origin(target.directive))
        self._tls(table, host)
        rule = rule_of(host, target, self.report)
        if rule.allow:
            table.put("allow", rule.allow, "by hand" if rule == NOBODY else "")
        if rule.deny:
            table.put("deny", rule.deny)
        self._compare(host.label, table)
        report_other_sections(host.scope.own, self.report)
        self.report.say(host.section, Verdict.SAME, "a [[listener.route]]")
        return table

    def _compare(self, label: str, table: Table) -> None:
        """A note if a client of another route can ask its backends for this host."""
        pool = str(table.values["pool"])
        addresses = {str(each.values["address"]) for each in self.pools[pool].backends}
        rules = repr([table.values.get(key) for key in _ADMISSION])
        if (pool, rules) in self._seen:
            return
        for (_, before), (other, theirs) in self._seen.items():
            if addresses & theirs and rules != before and other != label:
                self.report.note(
                    f"{other} and {label} share a backend, but admit different clients: relay does"
                    " not compare Host with the server name, so let the backend do it"
                )
                break
        self._seen[pool, rules] = label, addresses

    # Where requests go.

    def _choose(self, host: Host) -> Target | None:
        """The line that decides for all connections, and a word about the others."""
        targets = targets_of(host)
        going = [each for each in targets if each.url is not None]
        # A RewriteRule is often about upgraded connections only.
        going.sort(key=lambda each: each.directive.name == "rewriterule")
        whole = [each for each in going if each.is_everything]
        chosen = next(iter(whole or going), None)
        for each in targets:
            if each is not chosen:
                self._other(each, chosen, host)
        if chosen is not None and not chosen.is_everything:
            reason = f"every path goes to this pool; in httpd only {chosen.path} did"
            self.report.say(chosen.directive, Verdict.BY_HAND, reason)
        return chosen

    def _other(self, target: Target, chosen: Target | None, host: Host) -> None:
        say, directive = self.report.say, target.directive
        if target.excluded:
            pages = {
                each.value for each in walk(list(host.scope.own)) if each.children and is_page(each)
            }
            if target.path in pages or "manager" in target.path or "status" in target.path:
                say(directive, Verdict.BETTER, "the page has an address of its own: [admin]")
            else:
                say(directive, Verdict.LOST, "relay serves no files; these requests go to the pool")
        elif target.url is None:
            say(
                directive,
                Verdict.BY_HAND,
                "it has no URL that can be used; write https://HOST:PORT",
            )
        elif (
            chosen is not None
            and chosen.url is not None
            and _goes_to(target.url) == _goes_to(chosen.url)
        ):
            say(directive, Verdict.SAME, "all requests of the connection go to this pool")
        else:
            reason = "relay does not see paths; give each application a server name"
            say(directive, Verdict.LOST, reason)

    def _pool(self, host: Host, target: Target) -> str:
        """The name of the pool."""
        url = target.url
        assert url is not None  # noqa: S101  _choose returns no other
        if url.scheme == "balancer":
            known = balancers_of(host.scope).get(url.host.lower())
            balancer = known or Balancer(url.host)
            balancer.parameters |= target.parameters
            address = f"balancer://{url.host}"
            verdict, reason = verdict_of(target.parameters, url, [])
        else:
            public = next(iter(host.names), "").removeprefix("*.")
            member = Member(url, target.directive, target.parameters)
            label = (public or "backend") if is_ip(url.host) or url.port == 0 else url.host
            balancer, address = Balancer(label, [member]), ""
            verdict, reason = Verdict.SAME, ""
        pool = self.maker.make(balancer, host.scope, next(iter(host.names), ""))
        if not pool.backends:
            backend = Table("[[pool.NAME.backend]]")
            backend.put("route", "worker1", "by hand: the balancer has no BalancerMember")
            backend.put("address", NO_MEMBER)
            pool.backends.append(backend)
            reason = f"there is no BalancerMember of {balancer.name}; write the backends"
            self.report.say(target.directive, Verdict.BY_HAND, reason)
        if address:
            self.report.say(target.directive, verdict, reason or "pool of the route")
        self._used |= {each.directive for each in balancer.members}
        return self._named(balancer.name, pool)

    def _named(self, wanted: str, pool: Pool) -> str:
        """Give the pool its name, or use an equal one that is there."""
        wanted = wanted.replace(".", "-")
        plain = safe_name(wanted, {})
        for name, other in self.pools.items():
            if name.startswith(plain) and other.same_as(pool):
                other.connect_s = max(other.connect_s, pool.connect_s)
                return name
        name = safe_name(wanted, dict(self.pools))
        tables = [pool.table, *pool.backends, *([pool.health] if pool.health else [])]
        for table in tables:
            table.header = table.header.replace("pool.NAME", f"pool.{name}")
        self.pools[name] = pool
        return name

    # TLS with clients.

    def _tls(self, table: Table, host: Host) -> None:
        scope, report = host.scope, self.report
        label = safe_name(host.names[0].replace("*", "any") if host.names else "default", {})
        self.material.pair(table, scope, label)
        verify = scope.last("sslverifyclient")
        required = verify is not None and verify.value.lower() == "require"
        inside = [
            each
            for each in walk(list(scope.own))
            if each.name == "sslverifyclient" and each not in scope.own
        ]
        anywhere = [*([verify] if verify else []), *inside]
        if not self.material.authorities(table, "client_ca", scope, "ssl", f"{label}-clients-ca"):
            table.remark("By hand: the CAs of the clients' certificates. There was none.")
            table.put("client_ca", self.material.placeholder("clients-ca.pem"))
        if not required:
            what = f"SSLVerifyClient {verify.value}" if verify is not None else "no SSLVerifyClient"
            table.remark(f"{what}: clients without a certificate were admitted; now they are not.")
            report.note(f"{host.label}: {what}, and relay refuses clients without a certificate")
            reason = "a client without a valid certificate is refused"
            report.say(verify, Verdict.LOST, reason)
        for each in inside:
            reason = "the certificate is required for the whole connection"
            report.say(each, Verdict.LOST, reason)
        if scope.last("sslverifydepth") or any(each.value.lower() != "none" for each in anywhere):
            put_depth(table, scope, "sslverifydepth", report)
        self.material.lists(table, "client_crl", scope, "ssl")
        put_versions(table, scope.last("sslprotocol"), report)
        put_ciphers(table, scope.every("sslciphersuite"), report)
        put_groups(table, scope.both("sslopensslconfcmd"), report)
        tickets = scope.last("sslsessiontickets")
        if tickets is not None and tickets.value.lower() == "off":
            table.put("session_tickets", False, origin(tickets))
            report.say(tickets, Verdict.BETTER, "session_tickets = false")
        protocols = scope.last("protocols")
        if protocols is not None and "h2" in [each.lower() for each in protocols.args]:
            table.off("alpn", ["h2", "http/1.1"], "by hand: if the backends speak HTTP/2 too")

"""A balancer of httpd as a pool of relay.

Never: leaves out a backend, or a parameter of one, without a word in the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from relay.config.address import host_name_fault, is_ip
from relay.importer.material import Material, origin
from relay.importer.names import safe_name
from relay.importer.parameters import verdict_of
from relay.importer.pool_tables import FoundName, Pool, put_health, values_of, weights_of
from relay.importer.proxying import TLS_SCHEMES, Balancer, Member, Parameters, parameters_of
from relay.importer.report import Report, Verdict
from relay.importer.tls_settings import put_ciphers, put_depth, put_versions
from relay.importer.toml import Table
from relay.importer.tree import Scope

_ROUTE = re.compile(r"""(?:(?![;,"\\])[!-~]){1,64}""")
_METHODS = {
    "byrequests": ("round_robin", Verdict.SAME, "it counts connections, not requests"),
    "bybusyness": ("least_connections", Verdict.SAME, ""),
    "bytraffic": ("round_robin", Verdict.LOST, "no balancing by bytes; round_robin was taken"),
    "heartbeat": ("round_robin", Verdict.LOST, "health checks decide who is used, not how much"),
}
_COOKIE_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_SEPARATOR = re.compile(r"""(?![;,"\\A-Za-z0-9])[!-~]""")


@dataclass(slots=True)
class PoolMaker:
    """Makes the pool of one balancer, as one virtual host uses it."""

    material: Material
    report: Report
    names: Mapping[tuple[str, int], FoundName]  # what --probe has found

    def make(self, balancer: Balancer, scope: Scope, public_name: str) -> Pool:
        """`public_name` is the virtual host's. The headers have NAME for the pool's."""
        label = safe_name(balancer.name, {})
        pool = Pool(Table("[pool.NAME]"))
        inside = Scope(
            [*scope.own, *(e for s in balancer.sections for e in s.children)], scope.server
        )
        for section in balancer.sections:
            self.report.say(section, Verdict.SAME, "a pool")
        for each in balancer.sets:
            verdict, reason = verdict_of(parameters_of(each.args, each), None, [])
            self.report.say(each, verdict, reason or "keys of the pool")
        for wrong in balancer.wrong:
            reason = "it has no URL that can be used; write https://HOST:PORT"
            self.report.say(wrong, Verdict.BY_HAND, reason)
        self._balance(pool.table, balancer.parameters)
        self._sticky(pool.table, balancer.parameters, scope)
        plain = self._members(pool, balancer)
        if not plain:
            self._tls(pool.table, inside, label)
            self._names(pool, inside, public_name)
        self._times(pool, balancer, scope)
        return pool

    def _balance(self, table: Table, parameters: Parameters) -> None:
        method, directive = parameters.get("lbmethod", ("byrequests", None))
        balance, verdict, reason = _METHODS.get(
            method.lower().removeprefix("lbmethod_"),
            ("round_robin", Verdict.BY_HAND, f"lbmethod {method} is not known; see balance"),
        )
        table.put("balance", balance, f"lbmethod={method}")
        if verdict is not Verdict.SAME:
            self.report.say(directive, verdict, reason)

    def _sticky(self, table: Table, parameters: Parameters, scope: Scope) -> None:
        names, directive = parameters.get("stickysession", ("", None))
        cookie, _, in_url = names.partition("|")
        if not cookie:
            return
        if not _COOKIE_NAME.fullmatch(cookie) or (in_url and not _COOKIE_NAME.fullmatch(in_url)):
            self.report.say(directive, Verdict.BY_HAND, f"{names} cannot be a cookie; see sticky")
            return
        table.put("sticky", "cookie", f"stickysession={names}: the first request of a connection")
        table.put("cookie", cookie)
        table.put("sticky_fallback", "balance", "clients without the cookie, as in httpd")
        if in_url and in_url != cookie:
            table.put("cookie_in_url", in_url)
        separator, where = parameters.get("stickysessionsep", (".", None))
        if separator.lower() == "off":
            separator = ""
        if separator != "." and (not separator or _SEPARATOR.fullmatch(separator)):
            table.put("cookie_separator", separator, "stickysessionsep")
        elif separator != ".":
            self.report.say(where, Verdict.BY_HAND, f"{separator} cannot be cookie_separator")
        self._own_cookie(table, cookie, scope)

    def _own_cookie(self, table: Table, cookie: str, scope: Scope) -> None:
        """`Header add Set-Cookie "ROUTEID=.%{BALANCER_WORKER_ROUTE}e; path=/"`."""
        for each in scope.both("header"):
            text = " ".join(each.args)
            if "set-cookie" not in text.lower() or "BALANCER_WORKER_ROUTE" not in text:
                continue
            match = re.search(r"([^\s\"=;]+)=", text.partition("ookie")[2])
            if match is None or match[1] != cookie:
                continue
            table.put("cookie_insert", True, origin(each))
            table.put("cookie_secret_file", self._secret())
            path = re.search(r"path=(/[ -:<-~]*)", text, re.IGNORECASE)
            if path and path[1].strip().strip('"') != "/":
                table.put("cookie_path", path[1].split()[0].strip('"'))
            self.report.say(each, Verdict.SAME, "cookie_insert, with a secret that was made now")

    def _secret(self) -> str:
        name = "ssl/cookie.secret"
        self.material.files.setdefault(name, b"")  # the command fills it
        return name

    # Backends.

    def _members(self, pool: Pool, balancer: Balancer) -> bool:
        """Whether the backends are on unix sockets, so that the pool has no TLS."""
        members = balancer.members
        unix = [each for each in members if each.url.scheme == "unix"]
        secure = [each for each in members if each.url.scheme in TLS_SCHEMES]
        chosen = secure or unix or members
        for member in members:
            if member not in chosen:
                reason = f"a backend without TLS is not possible ({member.url.scheme}://)"
                self.report.say(member.directive, Verdict.LOST, reason)
        weights = weights_of(chosen)
        for number, member in enumerate(chosen):
            table = Table("[[pool.NAME.backend]]")
            routes = [str(each.values["route"]) for each in pool.backends]
            words: list[str] = []
            route = _route(member, routes, number, words)
            table.put("route", route, origin(member.directive))
            table.put("address", member.url.address)
            if member.url.scheme == "unix":
                table.put("peer_user", "BY-HAND", "the user of the program that listens there")
                reason = "write the user of the program that listens there into peer_user"
                self.report.say(member.directive, Verdict.BY_HAND, reason)
            elif member.url.scheme not in TLS_SCHEMES:
                table.remark("By hand: it spoke without TLS. Give it TLS, and correct the port.")
                reason = f"a backend without TLS is not possible ({member.url.scheme}://)"
                self.report.say(member.directive, Verdict.LOST, f"{reason}; give it TLS")
            self._member(table, member, weights[number], words)
            pool.backends.append(table)
        return bool(unix) and not secure

    def _member(self, table: Table, member: Member, weight: int, words: list[str]) -> None:
        if weight != 1:
            table.put("weight", weight, "loadfactor")
        status = member.parameters.get("status", ("", member.directive))[0].upper()
        flags = set(re.sub(r"-[A-Z]", "", status)) & set("DSHENIRC")
        if flags & {"H", "R"}:
            table.put("standby", True, f"status={status}")
        if flags & set("DSEN"):
            words.append(
                f"status={status}: run `relay backend` to disable or drain it after the start"
            )
            table.remark(f"status={status}: run `relay backend` to disable or drain it.")
        limit = member.parameters.get("max", ("", member.directive))[0]
        if re.fullmatch("[0-9]{1,6}", limit) and int(limit):
            table.put("max_connections", int(limit), "max=: over all workers, not per process")
        verdict, reason = verdict_of(member.parameters, member.url, words)
        self.report.say(member.directive, verdict, reason or "a backend of the pool")

    def _names(self, pool: Pool, scope: Scope, public_name: str) -> None:
        preserve = scope.last("proxypreservehost")
        if preserve is not None and preserve.is_on:
            pool.table.put("sni", "client", origin(preserve))
            self.report.say(preserve, Verdict.SAME, 'sni = "client", and name is the public name')
        unchecked = [
            each
            for name in ("sslproxycheckpeername", "sslproxycheckpeercn")
            if (each := scope.last(name)) and not each.is_on
        ]
        unnamed: list[str] = []
        for table in pool.backends:
            address = str(table.values["address"])
            host, _, port = address.rpartition(":")
            host = host.strip("[]")
            found = self.names.get((host, int(port)))
            if found is not None and found.verified:
                table.put(
                    "name", found.name, "read from its certificate, which backend_ca verifies"
                )
            elif found is not None:
                table.off("name", found.name, "read from its certificate, which was not verified")
            elif preserve is not None and preserve.is_on and public_name and not unchecked:
                table.put("name", public_name, "its certificate must carry it, as in httpd")
            elif is_ip(host) or unchecked:
                table.off(
                    "name", "app.example.com", "if its certificate does not carry the address"
                )
                unnamed.append(host)
            elif host_name_fault(host):
                table.remark("By hand: write a host name or IP address that is possible.")
        if unnamed:
            self.report.note(
                "set name, or import again with --probe, unless the certificates of these backends"
                f" carry exactly this: {', '.join(dict.fromkeys(unnamed))}"
            )
        for directive in unchecked:
            reason = "always checked: set name to one that each certificate carries, or use --probe"
            self.report.say(directive, Verdict.BY_HAND, reason)

    # Settings of the pool.

    def _tls(self, table: Table, scope: Scope, label: str) -> None:
        self.material.machine_pair(table, scope, label)
        if not self.material.authorities(table, "backend_ca", scope, "sslproxy", f"{label}-ca"):
            table.remark("By hand: the CAs of the backends' certificates. httpd verified none.")
            table.put("backend_ca", self.material.placeholder("backends-ca.pem"))
        self.material.lists(table, "backend_crl", scope, "sslproxy")
        verify = scope.last("sslproxyverify")
        if verify is not None and verify.value.lower() == "require":
            self.report.say(verify, Verdict.SAME, "always on")
            put_depth(table, scope, "sslproxyverifydepth", self.report)
        else:
            reason = "backends are always verified: put their CA into backend_ca"
            self.report.say(verify, Verdict.LOST, reason)
            reason = "it had no effect without SSLProxyVerify require; see max_chain_depth"
            self.report.say(scope.last("sslproxyverifydepth"), Verdict.SAME, reason)
        put_versions(table, scope.last("sslproxyprotocol"), self.report)
        put_ciphers(table, scope.every("sslproxyciphersuite"), self.report)

    def _times(self, pool: Pool, balancer: Balancer, scope: Scope) -> None:
        members = [each.parameters for each in balancer.members]
        if retries := values_of(members, "retry"):
            pool.table.put("retry_s", max(min(retries), 1), "retry=")
        idle = values_of([balancer.parameters, *members], "timeout")
        timeout = scope.last("proxytimeout")
        if timeout is not None:
            self.report.say(timeout, Verdict.SAME, "idle_s of the pool")
            idle = idle or values_of([{"timeout": (timeout.value, timeout)}], "timeout")
        if idle:
            pool.table.put("idle_s", max(*idle, 1), "timeout: no byte moves for this time")
        pool.connect_s = max(values_of(members, "connectiontimeout"), default=0)
        put_health(pool, members)


def _route(member: Member, taken: list[str], number: int, words: list[str]) -> str:
    """The backend's `route`, which no other has."""
    route = member.parameters.get("route", ("", member.directive))[0]
    if _ROUTE.fullmatch(route) and route not in taken:
        return route
    numbers = range(number + 1, number + len(taken) + 2)
    made = next(name for each in numbers if (name := f"worker{each}") not in taken)
    if route:
        words.append(f"the route {route} is used twice or not possible; it is {made} now")
    return made

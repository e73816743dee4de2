"""A backend of HAProxy as a pool: its servers, their TLS, and their checks.

Never: looks at a frontend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from relay.config.address import is_ip
from relay.importer.build import WantedName, wanted_of
from relay.importer.haproxy_parser import HaproxyParser, last
from relay.importer.haproxy_tls import with_defaults
from relay.importer.material import Material, origin
from relay.importer.names import safe_name
from relay.importer.pool_tables import FoundName, Pool
from relay.importer.report import Verdict
from relay.importer.tls_settings import VERSIONS, put_cipher_lists
from relay.importer.toml import Table
from relay.importer.tree import Directive

_WORDS = (
    "ca-file crl-file crt verify verifyhost sni ssl-min-ver ssl-max-ver ciphers "
    "ciphersuites alpn weight maxconn inter fastinter downinter rise fall port addr "
    "check-sni check-alpn cookie id source resolvers resolve-prefer init-addr observe "
    "on-error on-marked-down on-marked-up track slowstart maxqueue minconn pool-max-conn "
    "namespace proxy-v2-options tcp-ut"
)
_VALUES = frozenset(_WORDS.split())
_BALANCE = {
    "roundrobin": "round_robin",
    "static-rr": "round_robin",
    "leastconn": "least_connections",
    "source": "hash",
    "random": "random",
}
_TIME = re.compile(r"([0-9]{1,9})(us|ms|s|m|h|d)?")
_UNITS = {"us": 1e-6, "ms": 0.001, "": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_NAMES = re.compile(r"str\(([^()]+)\)")


@dataclass(slots=True)
class ServerMaker:
    """Makes each pool once."""

    parser: HaproxyParser
    material: Material
    names: Mapping[tuple[str, int], FoundName]
    pools: dict[str, Pool] = field(default_factory=dict)
    _named: dict[Directive, str] = field(default_factory=dict)

    def pool(self, section: Directive, line: Directive) -> str:
        """The name of the pool for a backend section."""
        if section in self._named:
            return self._named[section]
        name = safe_name((section.value or "pool").replace(".", "-"), dict(self.pools))
        self._named[section] = name
        pool = self.pools[name] = Pool(Table(f"[pool.{name}]"))
        report, settings = self.parser.report, self.parser.settings(section)
        report.say(section, Verdict.SAME, "a pool")
        self._balance(pool.table, settings)
        servers = [each for each in section.children if each.name == "server"]
        default: dict[str, str] = {}
        for each in settings:
            if each.name == "default-server":
                default |= _words(each.args)
                report.say(each, Verdict.SAME, "keys of the pool and its backends")
        rows = [
            (each, with_defaults(self.parser, "server", default | _words(each.args[2:])))
            for each in servers
        ]
        first = rows[0][1] if rows else {}
        self._tls(pool.table, first, name)
        for server, given in rows:
            self._server(pool, name, server, given, first)
        if not rows:
            table = Table(f"[[pool.{name}.backend]]")
            table.put("route", "server1", "by hand: the backend has no server")
            table.put("address", "by-hand.invalid:443")
            pool.backends.append(table)
            report.say(line, Verdict.BY_HAND, f"backend {section.value} has no server")
        self._checks(pool, settings, first)
        idle = last(settings, "timeout", "server")
        if idle is not None and (value := self.seconds(idle.arg(1))):
            pool.table.put("idle_s", value, origin(idle))
        connect = last(settings, "timeout", "connect")
        pool.connect_s = (self.seconds(connect.arg(1)) or 0) if connect is not None else 0
        return name

    def _balance(self, table: Table, settings: list[Directive]) -> None:
        balance = last(settings, "balance")
        if balance is not None:
            method = re.sub(r"\(.*", "", balance.value.lower())
            verdict = Verdict.SAME if method in _BALANCE else Verdict.BY_HAND
            table.put("balance", _BALANCE.get(method, "round_robin"), origin(balance))
            self.parser.report.say(balance, verdict, "balance of the pool")
        stick = last(settings, "stick", "on", "src")
        if stick is not None:
            table.put("sticky", "source", origin(stick))
        for each in settings:
            if each.name in {"stick", "stick-table"}:
                verdict = Verdict.BETTER if stick is not None else Verdict.BY_HAND
                reason = 'sticky = "source": by hashing, without a table; see docs/configuration.md'
                self.parser.report.say(each, verdict, reason)

    def _tls(self, table: Table, given: dict[str, str], name: str) -> None:
        if not given.get("crt"):
            table.remark("By hand: the certificate that relay shows to the backends.")
        certificate, key = self.material.pem(given.get("crt", ""), "machine.pem")
        table.put("machine_certificate", certificate)
        table.put("machine_key", key)
        ca = given.get("ca-file", "")
        if not ca or ca.startswith("@"):
            ca = self.material.placeholder(f"{name}-ca.pem")
        table.put("backend_ca", ca)
        if given.get("crl-file"):
            table.put("backend_crl", [given["crl-file"]])
        for key_name, word in (("min_version", "ssl-min-ver"), ("max_version", "ssl-max-ver")):
            if given.get(word, "").lower() in VERSIONS:
                table.put(key_name, VERSIONS[given[word].lower()])
        put_cipher_lists(table, given.get("ciphers", ""), given.get("ciphersuites", ""))
        if given.get("sni") in {"ssl_fc_sni", "req.ssl_sni"}:
            table.put("sni", "client", "sni ssl_fc_sni")
        if "send-proxy-v2" in given or "send-proxy-v2-ssl-cn" in given:
            table.put("send_proxy", "v2")
        elif "send-proxy" in given:
            table.put("send_proxy", "v1")

    def _server(
        self,
        pool: Pool,
        name: str,
        server: Directive,
        given: dict[str, str],
        first: dict[str, str],
    ) -> None:
        table, words = Table(f"[[pool.{name}.backend]]"), []
        verdict = Verdict.SAME
        host, port = _address(server.arg(1))
        taken = [str(each.values["route"]) for each in pool.backends]
        usable = re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", server.value) and server.value not in taken
        table.put("route", server.value if usable else f"server{len(taken) + 1}", origin(server))
        table.put("address", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        if "ssl" not in given:
            verdict, words = Verdict.LOST, ["a backend without TLS is not possible; give it TLS"]
        elif given.get("verify", "required") != "required":
            verdict, words = Verdict.LOST, ["backends are always verified: set backend_ca"]
        static = _NAMES.fullmatch(given.get("sni", ""))
        wanted = given.get("verifyhost") or (static[1] if static else "")
        found = self.names.get((host, int(port)))
        if wanted:
            table.put("name", wanted.lower(), "verifyhost or sni")
        elif found is not None and found.verified:
            table.put("name", found.name, "read from its certificate, which backend_ca verifies")
        else:
            table.off("name", "app.example.com", "the name in its certificate, if not the host")
            words.append("without verifyhost, HAProxy checked no name: set name, or use --probe")
            verdict = max(verdict, Verdict.BY_HAND, key=list(Verdict).index)
        weight = given.get("weight", "")
        if weight.isdecimal() and int(weight[:4]) > 1:
            table.put("weight", min(int(weight[:4]), 256))
        if "backup" in given:
            table.put("standby", True, "backup")
        limit = given.get("maxconn", "")
        if re.fullmatch("[1-9][0-9]{0,5}", limit):
            table.put("max_connections", int(limit))
        if "disabled" in given:
            words.append("disabled: run `relay backend` after the start")
            verdict = max(verdict, Verdict.BY_HAND, key=list(Verdict).index)
        tls = ("ca-file", "crt", "crl-file", "ciphers", "ssl-min-ver", "ssl-max-ver")
        if any(given.get(each) != first.get(each) for each in tls):
            words.append("its TLS settings differ from the first server; a pool has one set")
            verdict = max(verdict, Verdict.BY_HAND, key=list(Verdict).index)
        pool.backends.append(table)
        self.parser.report.say(server, verdict, "; ".join(words) or "a backend of the pool")

    def _checks(self, pool: Pool, settings: list[Directive], given: dict[str, str]) -> None:
        if "check" not in given:
            return
        table = pool.health = Table(f"{pool.table.header[:-1]}.health]")
        table.put("interval_s", self.seconds(given.get("inter", "")) or 2, "inter")
        for key, word, default in (("rise", "rise", 2), ("fall", "fall", 3)):
            text = given.get(word, "")
            table.put(key, int(text) if re.fullmatch("[1-9][0-9]{0,3}", text) else default)
        check = last(settings, "option", "httpchk")
        path = next((each for each in check.args if each.startswith("/")), "/") if check else ""
        if path and re.fullmatch(r"/[!-~]*", path) and "#" not in path:
            table.put("http_get", path, origin(check))

    @staticmethod
    def seconds(text: str) -> float | None:
        """A time of HAProxy in seconds; None if it is none."""
        match = _TIME.fullmatch(text)
        value = int(match[1]) * _UNITS[match[2] or ""] if match else 0
        return min(value, 31_536_000) if value > 0 else None

    def timeouts(self) -> list[Table]:
        """`[timeouts]`, if a backend has a timeout for connecting."""
        longest = max((pool.connect_s for pool in self.pools.values()), default=0)
        table = Table("[timeouts]")
        if longest:
            table.put("connect_s", longest, "timeout connect, the longest of them")
        return [table]

    def wanted(self) -> list[WantedName]:
        """The backends whose names --probe reads."""
        return [each for pool in self.pools.values() for each in wanted_of(pool)]


def _words(words: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        found[word] = left.pop(0) if word in _VALUES and left else ""
    return found


def _address(text: str) -> tuple[str, str]:
    plain = re.sub(r"^(ipv4|ipv6)@", "", text)
    host, colon, port = plain.rpartition(":")
    if is_ip(plain) or not colon or not re.fullmatch("[1-9][0-9]{0,4}", port):
        host, port = plain.removesuffix(":" + port) if colon and not is_ip(plain) else plain, "443"
    return host.strip("[]") or "by-hand.invalid", port if int(port) < 65_536 else "443"

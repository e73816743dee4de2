"""What must hold beyond the shape of single keys: names that refer to something, addresses, patterns, and features of this version.

Never: reads a file, resolves a name, or asks this machine anything: the same configuration has the same problems everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from relay.config.address import is_ip, overlap, parse_address, why_no_host_name
from relay.config.explain import nearest, quoted
from relay.config.key_path import NAME, listener_paths, pool_path
from relay.config.model import Allow, Config, Listener, Log, Pool, Route
from relay.config.rules.admin import check_admin
from relay.config.rules.health import check_health
from relay.config.rules.stickiness import check_route, check_stickiness
from relay.errors import ConfigError, Problem

_NAME_REMEDY = "use 1 to 64 of A-Z a-z 0-9 _ . - and begin with a letter or digit"
# What stands after the last "." of a cookie value (RFC 6265, 4.1.1), so that it can be cut off and compared.
_BACKEND_ROUTE = re.compile(r"""(?:(?![.;,"\\])[!-~]){1,64}""")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_STRFTIME = re.compile(r"%(.?)", re.DOTALL)
_STRFTIME_FIELDS = frozenset("aAbBCdFgGhHIjmMpSTuUVwWyYz%")
_ROUTE_FILES = ("certificate", "private_key", "client_ca")
_POOL_FILES = ("machine_certificate", "machine_key", "backend_ca")
_TLS_KEYS = frozenset({"min_version", "ciphers_tls12", "ciphersuites_tls13", "groups"})
_FILE_REMEDIES = {
    "certificate": "name the PEM file with the certificate shown to clients, leaf first, then its chain",
    "private_key": "name the PEM file with the key of certificate; it may be the same file",
    "client_ca": "name the PEM file with the CAs whose clients may come in; client verification cannot be turned off",
    "machine_certificate": "name the PEM file with the certificate shown to the backends, leaf first, then its chain",
    "machine_key": "name the PEM file with the key of machine_certificate; it may be the same file",
    "backend_ca": "name the PEM file with the CAs of the backends' certificates; backend verification cannot be turned off",
}
_LEADS_TO_POOLS = re.compile(r"listener(\[\d+\])?|listener.*\.(route(\[\d+\])?|pool)")
_STEP = re.compile(r"[.\[]")
_LATER = "not supported in this version"


@dataclass(slots=True)
class _Findings:
    """Collects problems; `doubtful` are the places of keys that were replaced because their shape was wrong."""

    doubtful: frozenset[str]
    problems: list[Problem] = field(default_factory=list)

    def add(self, where: str, what: str, remedy: str = "", *, compared: Iterable[str] = ()) -> None:
        """Note a problem, unless its place, or a place it was compared with, has been reported already."""
        if not any(self.doubts(place) for place in (where, *compared)):
            self.problems.append(Problem(where, what, remedy))

    def add_compared(self, problems: Iterable[tuple[Problem, Sequence[str]]]) -> None:
        """Note problems that come with the places they were compared with."""
        for problem, compared in problems:
            self.add(problem.where, problem.what, problem.remedy, compared=compared)

    def doubts(self, place: str) -> bool:
        """Whether this place lies in something that was replaced."""
        return place in self.doubtful or any(
            place[: match.start()] in self.doubtful for match in _STEP.finditer(place)
        )


def check_rules(config: Config, doubtful: frozenset[str] = frozenset()) -> list[Problem]:
    """Every rule that `config` breaks, in the order of the file's sections; empty when it can be used.

    `doubtful`: places that hold stand-ins since they were reported before; nothing is said about them.
    """
    found = _Findings(doubtful)
    _log(found, config.log)
    _addresses(found, config)
    for problem, compared in check_admin(config.admin):
        found.add(problem.where, problem.what, problem.remedy, compared=compared)
    for where, listener in zip(
        listener_paths([each.name for each in config.listener]), config.listener, strict=True
    ):
        _listener(found, where, listener, config)
    for name, pool in config.pool.items():
        _pool(found, pool_path(name), name, pool)
    _files_of_pools(found, config)
    _unused_pools(found, config)
    return found.problems


def _log(found: _Findings, log: Log) -> None:
    unknown = [
        match[1] for match in _STRFTIME.finditer(log.access) if match[1] not in _STRFTIME_FIELDS
    ]
    for each in unknown:
        shown = f"%{ascii(each)[1:-1]}" if each else "a single % at its end"
        found.add(
            "log.access",
            f"{quoted(log.access)} has {shown}, which is no field of strftime",
            "use fields like %Y%m%d or %H, and %% for a percent sign",
        )
    if not log.access.isprintable():
        found.add(
            "log.access",
            "contains line breaks or control characters",
            'name a file, or "-" for stdout',
        )
        return
    # "%%" alone is a percent sign and makes no rotation.
    constant = all(match[1] == "%" for match in _STRFTIME.finditer(log.access))
    asked = "access_rotate_s" in log.model_fields_set
    if (
        asked
        and constant
        and (log.access not in {"", "-"} or log.access_rotate_s != Log().access_rotate_s)
    ):
        what = f"has no effect: log.access is {quoted(log.access)}, which is the same file at all times"
        found.add(
            "log.access_rotate_s",
            what,
            "put fields like %Y%m%d into log.access, or remove this key",
            compared=["log.access"],
        )


def _addresses(found: _Findings, config: Config) -> None:
    """Everything we bind."""
    taken: dict[str, tuple[str, tuple[str, int]]] = {}
    places = listener_paths([each.name for each in config.listener])
    bound = [
        (f"{where}.listen[{index}]", text)
        for where, listener in zip(places, config.listener, strict=True)
        for index, text in enumerate(listener.listen)
    ]
    if config.admin.listen and config.admin.unix_path is None:
        bound.append(("admin.listen", config.admin.listen))
    for where, text in bound:
        try:
            host, port = parse_address(text)
        except ConfigError as error:
            _adopt(found, where, error)
            continue
        if not is_ip(host):
            example = f"127.0.0.1:{port}" if host == "localhost" else f"0.0.0.0:{port}"
            found.add(
                where,
                f"{quoted(text)} is not an IP address",
                f"write an address of this machine, for example {quoted(example)}; a name may stand for several, or change",
            )
        else:
            for first, (other, bound_first) in taken.items():
                if overlap((host, port), bound_first):
                    found.add(
                        where,
                        f"{quoted(text)} is taken already by {first}"
                        + (f", {quoted(other)}" if other != text else ""),
                        "give each its own address or port",
                        compared=[first],
                    )
                    break
            taken[where] = text, (host, port)


def _adopt(found: _Findings, where: str, error: ConfigError) -> None:
    for problem in error.problems:
        found.add(where, problem.what, problem.remedy)


def _listener(found: _Findings, where: str, listener: Listener, config: Config) -> None:
    names = [each.name for each in config.listener]
    if not NAME.fullmatch(listener.name):
        found.add(
            f"{where}.name",
            f"{quoted(listener.name)} cannot name a listener in logs and metrics",
            _NAME_REMEDY,
        )
    elif names.count(listener.name) > 1 and where != f"listener[{names.index(listener.name)}]":
        found.add(
            f"{where}.name",
            f"{quoted(listener.name)} names listener[{names.index(listener.name)}] already",
            "give each listener a name of its own",
        )
    if listener.accept_proxy:
        found.add(
            f"{where}.accept_proxy",
            f"true is {_LATER}",
            "remove it; clients must connect without a PROXY header",
        )
    for index, route in enumerate(listener.route):
        _route(found, f"{where}.route[{index}]", route, config)
    _reach(found, where, listener.route)


def _route(found: _Findings, where: str, route: Route, config: Config) -> None:
    for index, pattern in enumerate(route.sni):
        _sni(found, f"{where}.sni[{index}]", pattern)
    if route.pool not in config.pool:
        meant = nearest(route.pool, config.pool)
        remedy = (
            f"did you mean {quoted(meant)}?"
            if meant
            else f"add a [{pool_path(route.pool)}]; there are: {', '.join(map(quoted, config.pool))}"
        )
        found.add(
            f"{where}.pool", f"there is no pool {quoted(route.pool)}", remedy, compared=["pool"]
        )
    else:
        found.add_compared(check_route(where, route, config.pool[route.pool]))
    files = {name: getattr(route, name) for name in _ROUTE_FILES}
    if route.mode == "passthrough":
        found.add(
            f"{where}.mode",
            f'"passthrough" is {_LATER}',
            "remove it, and give the route certificate, private_key and client_ca",
        )
        for name in sorted(
            route.model_fields_set
            & (_TLS_KEYS | {"client_crl", "allow", "alpn", "session_tickets", *_ROUTE_FILES})
        ):
            found.add(
                f"{where}.{name}",
                "does not apply: a passthrough route does not see inside TLS",
                "remove it, or remove mode",
                compared=[f"{where}.mode"],
            )
    else:
        for name, file in files.items():
            if file is None:
                found.add(
                    f"{where}.{name}",
                    "is missing",
                    _FILE_REMEDIES[name],
                    compared=[f"{where}.mode"],
                )
    if route.client_crl:
        found.add(
            f"{where}.client_crl",
            f"revocation lists are {_LATER}",
            "remove it; until then take revoked certificates out with allow, or change the CA",
        )
    _tls(found, where, route)
    for index, protocol in enumerate(route.alpn):
        if not 1 <= len(protocol) <= 255 or not (protocol.isascii() and protocol.isprintable()):
            found.add(
                f"{where}.alpn[{index}]",
                f"{quoted(protocol)} is no protocol name",
                'write 1 to 255 printable ASCII characters, for example "h2", "http/1.1" or "postgresql"',
            )
        elif protocol in route.alpn[:index]:
            found.add(
                f"{where}.alpn[{index}]", f"{quoted(protocol)} is in the list already", "remove it"
            )
    if (
        sum(len(each) + 1 for each in route.alpn) > 65_535
    ):  # RFC 7301, 3.1: the list's length is two bytes
        found.add(
            f"{where}.alpn",
            "is longer than a TLS extension can be",
            "name only the protocols that the pool's backends speak",
        )
    _allow(found, f"{where}.allow", route.allow, given="allow" in route.model_fields_set)


def _sni(found: _Findings, where: str, pattern: str) -> None:
    name = pattern.removeprefix("*.")
    if is_ip(name.strip("[]")):
        found.add(
            where,
            f"{quoted(pattern)} is an IP address, which clients never send as server name (RFC 6066, section 3)",
            "for clients that connect by address make a route without sni, as the last one",
        )
    elif "*" in name:
        what = "takes every name" if pattern == "*" else "has a * that is not its whole first label"
        found.add(
            where,
            f"{quoted(pattern)} {what}",
            'write "*.example.com" for all names one label longer; a route without sni takes everything',
        )
    elif why := why_no_host_name(name):
        found.add(where, f"{quoted(pattern)} {why}", "write a host name, or *. and a host name")


def _reach(found: _Findings, where: str, routes: Sequence[Route]) -> None:
    """Patterns and routes that no client can reach, as the first match wins (see `core.routes`)."""
    taken: dict[str, str] = {}
    for number, route in enumerate(routes):
        here = f"{where}.route[{number}]"
        if not route.sni and number < len(routes) - 1:
            what = f"has no sni and takes every name, so {where}.route[{number + 1}] and what follows it can never match"
            found.add(f"{here}.sni", what, "move this route to the end, or give it sni")
            return
        for index, pattern in enumerate(route.sni):
            place = f"{here}.sni[{index}]"
            first = taken.get(pattern)
            if (
                first is None
                and (wild := taken.get(f"*.{pattern.partition('.')[2]}", place)).rpartition(".sni")[
                    0
                ]
                != here
            ):
                first = wild  # inside one route a name beside its own wildcard is no mistake, and it makes the route's label
            if first is not None:
                found.add(
                    place,
                    f"{quoted(pattern)} can never match: {first} takes it first",
                    "put the more special route before the other, or remove this name",
                    compared=[first],
                )
            taken.setdefault(pattern, place)


def _allow(found: _Findings, where: str, allow: Allow, *, given: bool) -> None:
    # A list that came out empty would let in every certificate of the CA, and nobody would notice.
    doubtful = any(place.startswith(f"{where}.") for place in found.doubtful)
    if given and not doubtful and not any(getattr(allow, kind) for kind in Allow.model_fields):
        remedy = "name at least one certificate that may come in, or remove allow to let in every certificate of client_ca"
        found.add(where, "lists nothing, and would let in everybody", remedy)
    for index, text in enumerate(allow.san_uri):
        if any("**" in segment and segment != "**" for segment in text.split("/")):
            what = f"{quoted(text)} has a ** that is not a whole path segment"
            found.add(
                f"{where}.san_uri[{index}]",
                what,
                'write "*" for a part of a segment, and "/**" for whole ones',
            )
    for kind in ("cn", "san_uri", "ou"):
        for index, text in enumerate(getattr(allow, kind)):
            if not text or not text.isprintable():
                found.add(
                    f"{where}.{kind}[{index}]",
                    f"{quoted(text)} can match nothing",
                    "remove it, or write what the certificate says",
                )
    for index, pattern in enumerate(allow.san_dns):
        name = pattern.removeprefix("*.")
        why = "has a * that is not its whole first label" if "*" in name else why_no_host_name(name)
        if why:
            found.add(
                f"{where}.san_dns[{index}]",
                f"{quoted(pattern)} {why}",
                'write a host name, or "*.example.com" for all names one label longer',
            )
    for index, fingerprint in enumerate(allow.fingerprint_sha256):
        if not _FINGERPRINT.fullmatch(fingerprint):
            remedy = "write 64 hexadecimal digits, with or without colons; see: openssl x509 -in FILE -noout -fingerprint -sha256"
            found.add(
                f"{where}.fingerprint_sha256[{index}]",
                f"{quoted(fingerprint)} is no SHA-256 fingerprint ({len(fingerprint)} characters without colons)",
                remedy,
            )


def _tls(found: _Findings, where: str, settings: Route | Pool) -> None:
    for name in ("ciphers_tls12", "ciphersuites_tls13", "groups"):
        if not getattr(settings, name):
            found.add(
                f"{where}.{name}",
                "is empty, and nobody could connect",
                "remove it to have the default, or name at least one",
            )
        elif not (getattr(settings, name).isascii() and getattr(settings, name).isprintable()):
            # OpenSSL reads up to a null character, and would not see what the relay appends.
            found.add(
                f"{where}.{name}",
                "contains characters that no cipher or group has in its name",
                "write OpenSSL's names, separated by colons",
            )
    if settings.min_version == "TLSv1.3" and "ciphers_tls12" in settings.model_fields_set:
        found.add(
            f"{where}.ciphers_tls12",
            'has no effect beside min_version = "TLSv1.3"',
            "remove it, or lower min_version",
            compared=[f"{where}.min_version"],
        )


def _pool(found: _Findings, where: str, name: str, pool: Pool) -> None:
    if not NAME.fullmatch(name):
        found.add(where, f"{quoted(name)} cannot name a pool in logs and metrics", _NAME_REMEDY)
    found.add_compared(check_stickiness(where, pool))
    if pool.send_proxy:
        found.add(
            f"{where}.send_proxy",
            f"{quoted(pool.send_proxy)} is {_LATER}",
            "remove it; backends see the relay's address",
        )
    for problem in check_health(where, pool):
        found.add(problem.where, problem.what, problem.remedy)
    _tls(found, where, pool)
    routes = [each.route for each in pool.backend]
    for index, backend in enumerate(pool.backend):
        here = f"{where}.backend[{index}]"
        if not _BACKEND_ROUTE.fullmatch(backend.route):
            remedy = r'use 1 to 64 printable ASCII characters without spaces and without . ; , " \, for example "worker1"'
            found.add(
                f"{here}.route",
                f"{quoted(backend.route)} cannot be the end of a cookie value",
                remedy,
            )
        elif backend.route in routes[:index]:
            first = f"{where}.backend[{routes.index(backend.route)}]"
            found.add(
                f"{here}.route",
                f"{quoted(backend.route)} is the route of {first} already",
                "give each backend of a pool a route of its own",
                compared=[f"{first}.route"],
            )
        try:
            parse_address(backend.address, min_port=1)
        except ConfigError as error:
            _adopt(found, f"{here}.address", error)
        if backend.name and not is_ip(backend.name) and (why := why_no_host_name(backend.name)):
            found.add(
                f"{here}.name",
                f"{quoted(backend.name)} {why}",
                "write the name, or the IP address, that the backend's certificate carries",
            )


def _files_of_pools(found: _Findings, config: Config) -> None:
    """A pool that a terminating route leads to opens TLS connections of its own."""
    terminating: dict[str, str] = {}
    for where, listener in zip(
        listener_paths([each.name for each in config.listener]), config.listener, strict=True
    ):
        for index, route in enumerate(listener.route):
            if route.mode == "terminate":
                terminating.setdefault(route.pool, f"{where}.route[{index}]")
    for name, first in terminating.items():
        for key in _POOL_FILES:
            if name in config.pool and getattr(config.pool[name], key) is None:
                found.add(
                    f"{pool_path(name)}.{key}",
                    f"is missing, and {first} leads here",
                    _FILE_REMEDIES[key],
                    compared=[f"{first}.mode", f"{first}.pool"],
                )


def _unused_pools(found: _Findings, config: Config) -> None:
    used = {route.pool for listener in config.listener for route in listener.route}
    # While a route's pool is in doubt, nobody knows which pools are used.
    unsure = any(_LEADS_TO_POOLS.fullmatch(each) for each in found.doubtful)
    # A misspelt name is one mistake, and was told at the route.
    meant = {nearest(name, config.pool) for name in used - config.pool.keys()}
    for name in config.pool:
        if name not in used | meant and not unsure:
            found.add(
                pool_path(name), "no route leads to this pool", "name it in a route, or remove it"
            )

"""Rules of listeners and their routes: names, server names, files, protocols.

Never: reads a file, or binds an address.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.config.address import host_name_fault, is_ip
from relay.config.explain import nearest, quoted
from relay.config.key_path import NAME, NAME_REMEDY, pool_path
from relay.config.listener_model import Listener, Route
from relay.config.model import Config
from relay.config.rules.access import check_access
from relay.config.rules.client_side import check_client_side
from relay.config.rules.connecting import check_route_starttls
from relay.config.rules.problem_list import ProblemList
from relay.config.rules.revocation import check_revocation
from relay.config.rules.stickiness import check_route_stickiness
from relay.config.rules.tls_settings import (
    FILE_REMEDIES,
    ROUTE_FILES,
    TLS_KEYS,
    check_expiry,
    check_tls,
)

# RFC 7301, section 3.1: the length of the list has two bytes.
_MAX_ALPN_BYTES = 65_535
_NOT_OF_PASSTHROUGH = TLS_KEYS | {
    "client_crl",
    "accept_server_certificates",
    "allow",
    "deny",
    "crl",
    "alpn",
    "send_ca_names",
    "starttls",
    "session_tickets",
    "key_passphrase_file",
    "ocsp_response",
    "at_expiry",
    "expiry_grace_s",
    *ROUTE_FILES,
}


def check_listener(found: ProblemList, where: str, listener: Listener, config: Config) -> None:
    """The listener at this key path, with its routes."""
    names = [each.name for each in config.listener]
    first = f"listener[{names.index(listener.name)}]"
    if not NAME.fullmatch(listener.name):
        found.add(
            f"{where}.name",
            f"{quoted(listener.name)} cannot name a listener in logs and metrics",
            NAME_REMEDY,
        )
    elif names.count(listener.name) > 1 and where != first:
        found.add(
            f"{where}.name",
            f"{quoted(listener.name)} is already the name of {first}",
            "give each listener a name of its own",
        )
    check_client_side(found, where, listener, config)
    for index, route in enumerate(listener.route):
        _route(found, f"{where}.route[{index}]", route, config)
    _unreachable(found, where, listener.route)


def _route(found: ProblemList, where: str, route: Route, config: Config) -> None:
    for index, pattern in enumerate(route.sni):
        _sni(found, f"{where}.sni[{index}]", pattern)
    if route.pool in config.pool:
        check_route_stickiness(found, where, route, config.pool[route.pool])
        check_route_starttls(found, where, route, config.pool[route.pool])
    else:
        _no_pool(found, where, route, config)
    _files(found, where, route)
    check_revocation(found, where, route, "client_crl")
    check_tls(found, where, route)
    check_expiry(found, where, route)
    _alpn(found, f"{where}.alpn", route.alpn)
    check_access(found, where, route)


def _no_pool(found: ProblemList, where: str, route: Route, config: Config) -> None:
    meant = nearest(route.pool, config.pool)
    pools = ", ".join(map(quoted, config.pool))
    remedy = (
        f"did you mean {quoted(meant)}?"
        if meant
        else f"add a [{pool_path(route.pool)}]; there are: {pools}"
    )
    found.add(f"{where}.pool", f"there is no pool {quoted(route.pool)}", remedy, compared=["pool"])


def _files(found: ProblemList, where: str, route: Route) -> None:
    if route.mode == "passthrough":
        for name in sorted(route.model_fields_set & _NOT_OF_PASSTHROUGH):
            found.add(
                f"{where}.{name}",
                "does not apply: a passthrough route does not see inside TLS",
                "remove mode, or remove this key",
                compared=[f"{where}.mode"],
            )
    else:
        for name in ROUTE_FILES:
            if getattr(route, name) is None:
                found.add(
                    f"{where}.{name}",
                    "is missing",
                    FILE_REMEDIES[name],
                    compared=[f"{where}.mode"],
                )


def _alpn(found: ProblemList, where: str, protocols: Sequence[str]) -> None:
    for index, protocol in enumerate(protocols):
        if not 1 <= len(protocol) <= 255 or not (protocol.isascii() and protocol.isprintable()):
            found.add(
                f"{where}[{index}]",
                f"{quoted(protocol)} is not a protocol name",
                'write 1 to 255 printable ASCII characters, for example "h2", "http/1.1" or'
                ' "postgresql"',
            )
        elif protocol in protocols[:index]:
            found.add(
                f"{where}[{index}]", f"{quoted(protocol)} is already in the list", "remove it"
            )
    if sum(len(each) + 1 for each in protocols) > _MAX_ALPN_BYTES:
        found.add(
            where,
            "is longer than a TLS extension can be",
            "name only the protocols that the pool's backends speak",
        )


def _sni(found: ProblemList, where: str, pattern: str) -> None:
    name = pattern.removeprefix("*.")
    if is_ip(name.strip("[]")):
        found.add(
            where,
            f"{quoted(pattern)} is an IP address, which clients never send as server name"
            " (RFC 6066, section 3)",
            "for clients that connect by IP address, add a route without sni as the last one",
        )
    elif "*" in name:
        what = (
            "matches every name" if pattern == "*" else "has a * that is not its whole first label"
        )
        found.add(
            where,
            f"{quoted(pattern)} {what}",
            'write "*.example.com" for all names with one more label; a route without sni matches'
            " everything",
        )
    elif why := host_name_fault(name):
        found.add(where, f"{quoted(pattern)} {why}", "write a host name, or *. and a host name")


def _unreachable(found: ProblemList, where: str, routes: Sequence[Route]) -> None:
    """Report patterns and routes that no client can reach: the first match wins."""
    taken: dict[str, str] = {}
    for number, route in enumerate(routes):
        here = f"{where}.route[{number}]"
        if not route.sni and number < len(routes) - 1:
            found.add(
                f"{here}.sni",
                f"has no sni and matches every name, so {where}.route[{number + 1}] and the routes"
                " after it can never match",
                "move this route to the end, or give it sni",
            )
            return
        for index, pattern in enumerate(route.sni):
            path = f"{here}.sni[{index}]"
            first = taken.get(pattern)
            wildcard = taken.get(f"*.{pattern.partition('.')[2]}")
            # A route may have both a name and its wildcard: the name becomes its label.
            if first is None and wildcard and wildcard.rpartition(".sni")[0] != here:
                first = wildcard
            if first is not None:
                found.add(
                    path,
                    f"{quoted(pattern)} can never match: {first} matches it first",
                    "move this route before the other one, or remove this name",
                    compared=[first],
                )
            taken.setdefault(pattern, path)

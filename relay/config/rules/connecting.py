"""Rules of how a pool connects to its backends: `sni`, `source`, `starttls`.

Never: binds an address, or resolves a name.
"""

from __future__ import annotations

from ipaddress import ip_address

from relay.config.address import host_name_fault, is_ip, parse_address
from relay.config.explain import quoted
from relay.config.listener_model import Route
from relay.config.pool_model import CLIENT_NAME, Pool
from relay.config.rules.problem_list import ProblemList
from relay.config.rules.stickiness import POSTGRES
from relay.errors import ConfigError


def check_connecting(found: ProblemList, where: str, pool: Pool) -> None:
    """How the pool at this key path connects."""
    _sni(found, f"{where}.sni", pool.sni)
    for index, backend in enumerate(pool.backend):
        _sni(found, f"{where}.backend[{index}].sni", backend.sni)
    if pool.sni and all(each.sni for each in pool.backend):
        found.add(
            f"{where}.sni",
            "has no effect, because every backend of the pool has its own sni",
            "remove it",
            compared=[f"{where}.backend[{index}].sni" for index in range(len(pool.backend))],
        )
    _source(found, where, pool)
    if pool.starttls:
        _starttls(found, where, pool)


def _starttls(found: ProblemList, where: str, pool: Pool) -> None:
    if pool.sticky == "cookie":
        found.add(
            f"{where}.sticky",
            "is by cookie, and PostgreSQL has no cookies",
            'write "source" or "identity"',
            compared=[f"{where}.starttls"],
        )
    if pool.health is not None and pool.health.http_get:
        found.add(
            f"{where}.health.http_get",
            "is not possible with starttls: PostgreSQL does not speak HTTP",
            "remove it; a check is the request for TLS and a full TLS handshake",
            compared=[f"{where}.starttls"],
        )


def check_route_starttls(found: ProblemList, where: str, route: Route, pool: Pool) -> None:
    """Whether the route at this key path can serve PostgreSQL's clients."""
    if not route.starttls or route.mode == "passthrough":
        return
    if pool.sticky == "cookie":
        found.add(
            f"{where}.starttls",
            f"is for PostgreSQL, and pool {quoted(route.pool)} is sticky by cookie",
            "remove it, or use a pool that is sticky by something else",
            compared=[f"{where}.pool"],
        )
    elif route.alpn and POSTGRES[0] not in route.alpn:
        found.add(
            f"{where}.alpn",
            'lacks "postgresql", which clients require that begin with TLS',
            "add it, or remove alpn: it is the default with starttls",
            compared=[f"{where}.starttls"],
        )


def _sni(found: ProblemList, where: str, sni: str) -> None:
    if sni in {"", CLIENT_NAME}:
        return
    if sni.strip().lower() == CLIENT_NAME:
        found.add(
            where,
            f"{quoted(sni)} would be the host name {quoted(sni)}",
            f"did you mean {quoted(CLIENT_NAME)}, for the name that the client has sent?",
        )
        return
    if is_ip(sni.strip("[]")):
        found.add(
            where,
            f"{quoted(sni)} is an IP address, which is never sent as server name"
            " (RFC 6066, section 3)",
            "remove it, or write the host name of the backend's virtual host",
        )
    elif why := host_name_fault(sni):
        found.add(
            where,
            f"{quoted(sni)} {why}",
            'write a host name, or "client" for the name that the client has sent',
        )


def _source_fault(address: str) -> str:
    """Why connections cannot come from this address, or ""."""
    if not is_ip(address):
        return "is not an IP address"
    parsed = ip_address(address)
    if parsed.is_unspecified:
        return "stands for every address, and a connection comes from one"
    return "is a multicast address" if parsed.is_multicast else ""


def _source(found: ProblemList, where: str, pool: Pool) -> None:
    families: dict[str, str] = {}
    for index, address in enumerate(pool.source):
        path = f"{where}.source" if len(pool.source) == 1 else f"{where}.source[{index}]"
        family = "IPv6" if ":" in address else "IPv4"
        if why := _source_fault(address):
            found.add(
                path,
                f"{quoted(address)} {why}",
                'write an IP address of this machine, for example "192.0.2.10"',
            )
            return
        if family in families:
            found.add(
                path,
                f"{quoted(address)} is a second {family} address, after {families[family]}",
                "write one IPv4 and one IPv6 address at most",
            )
        families.setdefault(family, path)
    if not families:
        return
    for index, backend in enumerate(pool.backend):
        try:
            host = parse_address(backend.address, min_port=1)[0]
        except ConfigError:
            continue
        family = "IPv6" if ":" in host else "IPv4"
        if is_ip(host) and family not in families:
            found.add(
                f"{where}.source",
                f"has no {family} address, and {where}.backend[{index}] is at {quoted(host)}",
                f"add the {family} address to connect from: source = [IPv4, IPv6]",
                compared=[f"{where}.backend[{index}].address"],
            )
            return

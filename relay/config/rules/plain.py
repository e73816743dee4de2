"""Rules of backends with which the relay does no TLS.

These are the backends of passthrough routes, and those on unix sockets. A backend on a
TCP address gets TLS from the relay or from its clients: there is no plain TCP.

Never: looks a user up, or opens a socket.
"""

from __future__ import annotations

from relay.config.explain import quoted
from relay.config.key_path import pool_path, routes_of
from relay.config.listener_model import Route
from relay.config.model import Config
from relay.config.pool_model import Pool
from relay.config.rules.problem_list import ProblemList
from relay.config.rules.tls_settings import POOL_FILES, TLS_KEYS
from relay.config.unix_addresses import unix_fault

_OF_TLS = TLS_KEYS | {
    "key_passphrase_file",
    "backend_crl",
    "crl",
    "at_expiry",
    "expiry_grace_s",
    "starttls",
    "sni",
    *POOL_FILES,
}
_OF_TCP = ("source", "user_timeout_s", "keepalive")
_INSIDE_TLS = "v2-inside-tls"


def check_plain(found: ProblemList, config: Config) -> None:
    """Every pool, with the routes that lead to it."""
    by_pool: dict[str, list[tuple[str, Route]]] = {}
    for at, _, route in routes_of(config):
        by_pool.setdefault(route.pool, []).append((at, route))
    for name, pool in config.pool.items():
        where = pool_path(name)
        routes = by_pool.get(name, [])
        through = [at for at, route in routes if route.mode == "passthrough"]
        _backends(found, where, pool)
        if any(each.unix_path for each in pool.backend):
            _unix_pool(found, where, pool)
        elif through and len(through) == len(routes):
            _passed_through(found, where, pool, through[0])
        if through:
            _no_tls_of_ours(found, where, pool, through[0])


def _backends(found: ProblemList, where: str, pool: Pool) -> None:
    """Addresses and users of the backends."""
    for index, backend in enumerate(pool.backend):
        here = f"{where}.backend[{index}]"
        if not backend.address.startswith("unix:"):
            if backend.peer_user:
                found.add(
                    f"{here}.peer_user",
                    f"has no effect: {quoted(backend.address)} is not a unix socket",
                    "remove it; a backend on a TCP address is verified by its certificate",
                    compared=[f"{here}.address"],
                )
            continue
        fault = unix_fault(backend.address)
        if fault:
            found.add(
                f"{here}.address",
                f"{quoted(backend.address)} {fault}",
                'write for example "unix:/run/app/app.sock"',
            )
        if not backend.peer_user:
            found.add(
                f"{here}.peer_user",
                "is missing: without it, any user could listen in place of the backend",
                "name the user that the application runs as; with systemd socket activation,"
                ' "root"',
                compared=[f"{here}.address"],
            )
        if backend.sni:
            found.add(
                f"{here}.sni",
                "has no effect: there is no TLS on a unix socket",
                "remove it",
                compared=[f"{here}.address"],
            )


def _unix_pool(found: ProblemList, where: str, pool: Pool) -> None:
    """A pool with a unix socket: it has only such backends, and no TLS."""
    first = next(i for i, each in enumerate(pool.backend) if each.unix_path)
    for index, backend in enumerate(pool.backend):
        if not backend.address.startswith("unix:"):
            found.add(
                f"{where}.backend[{index}].address",
                f"{quoted(backend.address)} is not a unix socket, but {where}.backend[{first}] is"
                " one: a pool verifies all its backends in the same way",
                "move these backends to a pool of their own",
                compared=[f"{where}.backend[{first}].address"],
            )
    for key in sorted(pool.model_fields_set & _OF_TLS):
        found.add(
            f"{where}.{key}",
            "has no effect: there is no TLS on a unix socket, and peer_user says who may listen",
            "remove it",
            compared=[f"{where}.backend[{first}].address"],
        )
    for key in _OF_TCP:
        if key in pool.model_fields_set:
            found.add(
                f"{where}.{key}",
                "has no effect on a unix socket",
                "remove it",
                compared=[f"{where}.backend[{first}].address"],
            )
    if pool.send_proxy == _INSIDE_TLS:
        found.add(
            f"{where}.send_proxy",
            f"{quoted(pool.send_proxy)} is not possible: there is no TLS on a unix socket",
            'write "v1" or "v2"',
            compared=[f"{where}.backend[{first}].address"],
        )


def _passed_through(found: ProblemList, where: str, pool: Pool, route: str) -> None:
    """A pool that only passthrough routes use."""
    unused = [f"{where}.{key}" for key in sorted(pool.model_fields_set & _OF_TLS)]
    unused += [f"{where}.backend[{i}].sni" for i, each in enumerate(pool.backend) if each.sni]
    if pool.send_proxy_certificate:
        unused.append(f"{where}.send_proxy_certificate")
    for index, name in enumerate(pool.send_proxy_tlvs or ()):
        if name == "alpn" or name.startswith("ssl"):
            unused.append(f"{where}.send_proxy_tlvs[{index}]")
    for path in unused:
        found.add(
            path,
            "has no effect: only passthrough routes use this pool, and their clients do TLS with"
            " the backends themselves",
            "remove it",
            compared=[f"{route}.mode", f"{route}.pool"],
        )
    if pool.health is not None and pool.health.http_get:
        found.add(
            f"{where}.health.http_get",
            "is not possible: only passthrough routes use this pool, so its backends are checked"
            " without TLS",
            "remove it; the check is that the backend accepts a connection",
            compared=[f"{route}.mode", f"{route}.pool"],
        )


def _no_tls_of_ours(found: ProblemList, where: str, pool: Pool, route: str) -> None:
    """A pool that a passthrough route uses, perhaps beside others."""
    if pool.send_proxy == _INSIDE_TLS and not any(each.unix_path for each in pool.backend):
        found.add(
            f"{where}.send_proxy",
            f"{quoted(pool.send_proxy)} is not possible: {route} does not terminate TLS",
            'write "v1" or "v2", or give this route a pool of its own',
            compared=[f"{route}.mode", f"{route}.pool"],
        )

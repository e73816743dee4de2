"""Rules of pools and their backends.

Never: reads a file, resolves a name, or opens a connection.
"""

from __future__ import annotations

import re

from relay.config.address import host_name_fault, is_ip, parse_address
from relay.config.backend_address import check_service, is_service
from relay.config.explain import quoted
from relay.config.key_path import NAME, NAME_REMEDY
from relay.config.pool_model import Backend, Pool
from relay.config.rules.connecting import check_connecting
from relay.config.rules.health import check_health
from relay.config.rules.problem_list import ProblemList
from relay.config.rules.revocation import check_revocation
from relay.config.rules.send_proxy import check_send_proxy
from relay.config.rules.stickiness import check_stickiness
from relay.config.rules.tls_settings import check_expiry, check_tls
from relay.errors import ConfigError

# The characters of a cookie value (RFC 6265, section 4.1.1).
_BACKEND_ROUTE = re.compile(r"""(?:(?![;,"\\])[!-~]){1,64}""")


def check_pool(found: ProblemList, where: str, name: str, pool: Pool) -> None:
    """The pool at this key path, with its backends."""
    if not NAME.fullmatch(name):
        found.add(where, f"{quoted(name)} cannot name a pool in logs and metrics", NAME_REMEDY)
    check_stickiness(found, where, pool)
    check_connecting(found, where, pool)
    check_send_proxy(found, where, pool)
    check_health(found, where, pool)
    check_revocation(found, where, pool, "backend_crl")
    check_tls(found, where, pool)
    check_expiry(found, where, pool)
    for index, backend in enumerate(pool.backend):
        _backend(found, where, index, backend, pool)


def _backend(found: ProblemList, where: str, index: int, backend: Backend, pool: Pool) -> None:
    here = f"{where}.backend[{index}]"
    earlier = [each.route for each in pool.backend[:index]]
    if not _BACKEND_ROUTE.fullmatch(backend.route):
        found.add(
            f"{here}.route",
            f"{quoted(backend.route)} cannot be a route, as it cannot be the end of a cookie value",
            'use 1 to 64 printable ASCII characters without spaces and without ; , " \\,'
            ' for example "worker1"',
        )
    elif backend.route in earlier:
        first = f"{where}.backend[{earlier.index(backend.route)}]"
        found.add(
            f"{here}.route",
            f"{quoted(backend.route)} is already the route of {first}",
            "give each backend of a pool a route of its own",
            compared=[f"{first}.route"],
        )
    try:
        _check_address(backend.address)
    except ConfigError as error:
        found.add_error(f"{here}.address", error)
    if backend.name and not is_ip(backend.name) and (why := host_name_fault(backend.name)):
        found.add(
            f"{here}.name",
            f"{quoted(backend.name)} {why}",
            "write the host name or IP address that the backend's certificate carries",
        )


def _check_address(address: str) -> None:
    """Raises ConfigError if this is not an address that a backend may have."""
    if is_service(address):
        check_service(address)
    elif not address.startswith("unix:"):  # see `check_plain`
        parse_address(address, min_port=1)

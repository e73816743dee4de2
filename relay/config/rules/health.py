"""Rules of a pool's `health` and `resolve_s`.

Never: resolves a name or opens a connection.
"""

from __future__ import annotations

import re

from relay.config.backend_address import lookup_name
from relay.config.explain import quoted
from relay.config.http_statuses import parse_statuses
from relay.config.pool_model import Health, Pool
from relay.config.rules.problem_list import ProblemList
from relay.errors import ConfigError

# What a request line may contain (RFC 9112, section 3.2.1), percent signs included.
_PATH = re.compile(r"/[!-~]*")


def check_health(found: ProblemList, where: str, pool: Pool) -> None:
    """How the backends of the pool at this key path are checked and looked up."""
    if pool.health is not None:
        _check(found, f"{where}.health", pool.health)
    if (
        "resolve_s" in pool.model_fields_set
        and pool.resolve_s != Pool.model_fields["resolve_s"].default
        and not any(_has_host_name(each.address) for each in pool.backend)
    ):
        found.add(
            f"{where}.resolve_s",
            "has no effect: no backend's address is a name",
            "remove it",
        )


def _check(found: ProblemList, where: str, health: Health) -> None:
    if health.http_get and (not _PATH.fullmatch(health.http_get) or "#" in health.http_get):
        found.add(
            f"{where}.http_get",
            f"{quoted(health.http_get)} is not a URL path",
            'start it with "/", leave out spaces and "#", and write characters beyond ASCII as'
            ' %XX, for example "/health"',
        )
    try:
        parse_statuses(health.http_status)
    except ValueError as error:
        found.add(
            f"{where}.http_status",
            f"{quoted(health.http_status)} {error}",
            'write statuses and ranges, for example "200-399" or "200, 204"',
        )
        return
    given = "http_status" in health.model_fields_set
    default = health.http_status == Health.model_fields["http_status"].default
    if given and not default and not health.http_get:
        found.add(
            f"{where}.http_status",
            "has no effect without http_get",
            "add http_get, or remove http_status",
        )


def _has_host_name(address: str) -> bool:
    try:
        return bool(lookup_name(address))
    except ConfigError:
        return True  # the address is reported as a problem of its own

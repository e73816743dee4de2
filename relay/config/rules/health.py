"""The rules of a pool's `health` and `resolve_s`.

Never: resolves a name or opens a connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.config.address import is_ip, parse_address
from relay.config.explain import quoted
from relay.config.http_statuses import parse_statuses
from relay.config.model import Health, Pool
from relay.errors import ConfigError, Problem

# What may stand in a request line (RFC 9112, 3.2.1), percent signs included.
_PATH = re.compile(r"/[!-~]*")


def check_health(where: str, pool: Pool) -> Iterator[Problem]:
    """Everything wrong with how the backends of the pool at `where` are checked and looked up."""
    if pool.health is not None:
        yield from _check(f"{where}.health", pool.health)
    if (
        "resolve_s" in pool.model_fields_set
        and pool.resolve_s != Pool.model_fields["resolve_s"].default
        and not any(map(_is_name, (each.address for each in pool.backend)))
    ):
        yield Problem(
            f"{where}.resolve_s",
            "has no effect: every backend's address is an IP address",
            "remove it",
        )


def _check(where: str, health: Health) -> Iterator[Problem]:
    if health.http_get and (not _PATH.fullmatch(health.http_get) or "#" in health.http_get):
        yield Problem(
            f"{where}.http_get",
            f"{quoted(health.http_get)} is no path of a URL",
            'begin it with "/", without spaces or "#", others than ASCII as %XX, for example "/health"',
        )
    try:
        parse_statuses(health.http_status)
    except ValueError as error:
        yield Problem(
            f"{where}.http_status",
            f"{quoted(health.http_status)} {error}",
            'write statuses and ranges of them, for example "200-399" or "200, 204"',
        )
    else:
        if (
            not health.http_get
            and "http_status" in health.model_fields_set
            and health.http_status != Health.model_fields["http_status"].default
        ):
            yield Problem(
                f"{where}.http_status",
                "has no effect without http_get",
                "add http_get, or remove it",
            )


def _is_name(address: str) -> bool:
    try:
        return not is_ip(parse_address(address)[0])
    except ConfigError:
        return True  # that is a problem of its own

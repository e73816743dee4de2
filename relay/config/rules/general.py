"""The rules that types cannot express, for the configuration as a whole.

Never: reads a file, resolves a name, or asks this machine anything. The same
configuration has the same problems everywhere.
"""

from __future__ import annotations

import re

from relay.config.address import is_ip, overlap, parse_address
from relay.config.explain import nearest, quoted
from relay.config.key_path import listener_paths, pool_path, routes_of
from relay.config.model import Config, Log, Relay
from relay.config.pool_model import Pool
from relay.config.rules.admin import check_admin
from relay.config.rules.listeners import check_listener
from relay.config.rules.plain import check_plain
from relay.config.rules.pools import check_pool
from relay.config.rules.problem_list import ProblemList
from relay.config.rules.tls_settings import FILE_REMEDIES, POOL_FILES
from relay.config.values import CREDENTIAL
from relay.errors import ConfigError, Problem

LEAST_WATCH_S = 0.1
_STRFTIME = re.compile(r"%(.?)", re.DOTALL)
_STRFTIME_FIELDS = frozenset("aAbBCdFgGhHIjmMpSTuUVwWyYz%")
_NAMES_A_POOL = re.compile(r"listener(\[\d+\])?|listener.*\.(route(\[\d+\])?|pool)")


def check_rules(config: Config, replaced: frozenset[str] = frozenset()) -> list[Problem]:
    """Every rule that `config` breaks, in the order of the file's sections.

    `replaced`: key paths that were reported before and hold stand-ins. They are not
    reported again.
    """
    found = ProblemList(replaced)
    _watch(found, config.relay)
    _log(found, config.log)
    _addresses(found, config)
    check_admin(found, config.admin)
    paths = listener_paths([each.name for each in config.listener])
    for where, listener in zip(paths, config.listener, strict=True):
        check_listener(found, where, listener, config)
    for name, pool in config.pool.items():
        check_pool(found, pool_path(name), name, pool)
    check_plain(found, config)
    _files_of_pools(found, config)
    _unused_pools(found, config)
    return found.problems


def _watch(found: ProblemList, relay: Relay) -> None:
    if 0 < relay.watch_s < LEAST_WATCH_S:
        what = f"{relay.watch_s:g} s would keep a process busy with looking at files"
        remedy = f"set it to {LEAST_WATCH_S:g} or more, or to 0 for never"
        found.add("relay.watch_s", what, remedy)


def _log(found: ProblemList, log: Log) -> None:
    fields = [match[1] for match in _STRFTIME.finditer(log.access)]
    for each in fields:
        if each not in _STRFTIME_FIELDS:
            shown = f"%{ascii(each)[1:-1]}" if each else "a single % at its end"
            found.add(
                "log.access",
                f"{quoted(log.access)} has {shown}, which is not a strftime field",
                "use fields such as %Y%m%d or %H, and %% for a percent sign",
            )
    if log.access.startswith(CREDENTIAL):
        found.add(
            "log.access",
            "cannot be a credential: the relay writes there",
            'name a file, or "-" for stdout',
        )
    if not log.access.isprintable():
        found.add(
            "log.access",
            "contains line breaks or control characters",
            'name a file, or "-" for stdout',
        )
        return
    # "%%" alone is a percent sign, so the name does not change.
    constant = all(each == "%" for each in fields)
    given = "access_rotate_s" in log.model_fields_set
    default = log.access_rotate_s == Log().access_rotate_s
    if given and constant and not (default and log.access in {"", "-"}):
        found.add(
            "log.access_rotate_s",
            f"has no effect: log.access is {quoted(log.access)}, which is always the same file",
            "put fields such as %Y%m%d into log.access, or remove this key",
            compared=["log.access"],
        )


def _addresses(found: ProblemList, config: Config) -> None:
    """Every address that the relay binds."""
    taken: dict[str, tuple[str, tuple[str, int]]] = {}
    paths = listener_paths([each.name for each in config.listener])
    bound = [
        (f"{where}.listen[{index}]", text)
        for where, listener in zip(paths, config.listener, strict=True)
        for index, text in enumerate(listener.listen)
    ]
    if config.admin.listen and config.admin.unix_path is None:
        bound.append(("admin.listen", config.admin.listen))
    for where, text in bound:
        if text.startswith("unix:"):
            continue  # `rules.client_side` looks at them
        try:
            host, port = parse_address(text)
        except ConfigError as error:
            found.add_error(where, error)
            continue
        if not is_ip(host):
            example = f"127.0.0.1:{port}" if host == "localhost" else f"0.0.0.0:{port}"
            found.add(
                where,
                f"{quoted(text)} is not an IP address",
                f"write an address of this machine, for example {quoted(example)}; a name can have"
                " several addresses, and they can change",
            )
            continue
        for first, (other, other_bound) in taken.items():
            if overlap((host, port), other_bound):
                shown = f", {quoted(other)}" if other != text else ""
                found.add(
                    where,
                    f"{quoted(text)} is already used by {first}{shown}",
                    "give each its own address or port",
                    compared=[first],
                )
                break
        taken[where] = text, (host, port)


def _files_of_pools(found: ProblemList, config: Config) -> None:
    """The files of every pool that is used by a route that terminates TLS."""
    terminating: dict[str, str] = {}
    for where, _, route in routes_of(config):
        if route.mode == "terminate":
            terminating.setdefault(route.pool, where)
    for name, first in terminating.items():
        for key in POOL_FILES:
            if name in config.pool and _lacks(config.pool[name], key):
                found.add(
                    f"{pool_path(name)}.{key}",
                    f"is missing, and {first} uses this pool",
                    FILE_REMEDIES[key],
                    compared=[f"{first}.mode", f"{first}.pool"],
                )


def _lacks(pool: Pool, key: str) -> bool:
    """Whether a file is missing. Backends on unix sockets need none."""
    return getattr(pool, key) is None and not any(each.unix_path for each in pool.backend)


def _unused_pools(found: ProblemList, config: Config) -> None:
    # If the pool of a route was replaced, any pool could be the one that was meant.
    if any(_NAMES_A_POOL.fullmatch(path) for path in found.replaced):
        return
    used = {route.pool for listener in config.listener for route in listener.route}
    # A misspelt name is one mistake, which was reported at the route.
    meant = {nearest(name, config.pool) for name in used - config.pool.keys()}
    for name in config.pool:
        if name not in used | meant:
            found.add(
                pool_path(name), "no route leads to this pool", "name it in a route, or remove it"
            )

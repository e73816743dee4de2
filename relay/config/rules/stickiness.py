"""The rules of a pool's stickiness and balancing, most of which say something only together with others.

Never: reads the secret (that is `tls.cookie_secret`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.config.explain import quoted
from relay.config.model import Config, Pool, Route
from relay.errors import Problem

HTTP1 = ("http/1.1",)

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2
_PATH = re.compile(r"/[ -:<-~]*")  # RFC 6265, 4.1.1
_OF_COOKIES = ("cookie", "cookie_insert", "sticky_fallback")
_OF_INSERTION = (
    "cookie_secret_file",
    "cookie_path",
    "cookie_secure",
    "cookie_http_only",
    "cookie_same_site",
)
_OF_HASHING = ("load_factor", "source_prefix_v4", "source_prefix_v6")


def alpn_of(config: Config, route: Route) -> tuple[str, ...]:
    """What a route offers: where a cookie decides, HTTP/1.1 is all that can be looked into."""
    pool = config.pool.get(route.pool)
    return HTTP1 if pool is not None and pool.sticky == "cookie" and not route.alpn else route.alpn


def check_stickiness(where: str, pool: Pool) -> Iterator[tuple[Problem, list[str]]]:
    """Everything wrong with how the pool at `where` chooses, and the places each was compared with."""
    sticky, given = f"{where}.sticky", pool.model_fields_set
    beside = f"has no effect beside sticky = {quoted(pool.sticky)}"
    if pool.sticky == "cookie":
        yield from _cookie(where, pool)
    else:
        for key in _OF_COOKIES:
            if key in given and (key != "cookie_insert" or pool.cookie_insert):
                yield (
                    Problem(f"{where}.{key}", beside, 'remove it, or set sticky = "cookie"'),
                    [sticky],
                )
        for key in _OF_INSERTION:
            if key in given:
                yield Problem(f"{where}.{key}", beside, "remove it"), [sticky]
    if pool.sticky == "none" and pool.balance != "hash":
        for key in _OF_HASHING:
            if key in given:
                yield (
                    Problem(
                        f"{where}.{key}",
                        f"{beside} and balance = {quoted(pool.balance)}",
                        'remove it, or set sticky = "source"',
                    ),
                    [sticky, f"{where}.balance"],
                )
    elif 0 < pool.load_factor < 1:
        what = f"{pool.load_factor:g} would leave connections without a backend"
        yield (
            Problem(
                f"{where}.load_factor",
                what,
                "write 1.25 or so, that is 25 % above its share; 0 is no limit",
            ),
            [],
        )
    if pool.on_down == "close" and pool.health is None:
        what = "has no effect without health checks: they are what finds that a backend is down"
        yield (
            Problem(f"{where}.on_down", what, f"add a [{where}.health], or remove it"),
            [f"{where}.health"],
        )


def _cookie(where: str, pool: Pool) -> Iterator[tuple[Problem, list[str]]]:
    name, given = f"{where}.cookie", pool.model_fields_set
    if not _TOKEN.fullmatch(pool.cookie):
        yield (
            Problem(
                name,
                f"{quoted(pool.cookie)} cannot be a cookie's name",
                "use letters, digits, - and _, for example JSESSIONID",
            ),
            [],
        )
    if not pool.cookie_insert:
        for key in _OF_INSERTION:
            if key in given:
                yield (
                    Problem(
                        f"{where}.{key}",
                        "has no effect without cookie_insert = true",
                        "remove it, or set that",
                    ),
                    [f"{where}.cookie_insert"],
                )
        return
    if "cookie" not in given:
        what = f"{quoted(pool.cookie)} is what applications call their own cookie, which ours would replace"
        yield (
            Problem(
                name, what, 'give the relay\'s cookie a name of its own, for example "RELAYID"'
            ),
            [],
        )
    if pool.cookie_secret_file is None:
        yield (
            Problem(
                f"{where}.cookie_secret_file",
                "is missing, and cookie_insert needs it",
                "make one with: openssl rand -hex 32 > FILE; chmod 600 FILE",
            ),
            [],
        )
    if not _PATH.fullmatch(pool.cookie_path):
        yield (
            Problem(
                f"{where}.cookie_path",
                f"{quoted(pool.cookie_path)} cannot be a cookie's path",
                "begin it with /, and leave out semicolons",
            ),
            [],
        )
    if pool.cookie_same_site == "None" and not pool.cookie_secure:
        yield (
            Problem(
                f"{where}.cookie_same_site",
                'browsers ignore a cookie with "None" that is not Secure',
                "remove cookie_secure = false",
            ),
            [f"{where}.cookie_secure"],
        )


def check_route(where: str, route: Route, pool: Pool) -> Iterator[tuple[Problem, list[str]]]:
    """Whether what the pool chooses by can be seen on this route."""
    compared = [f"{where}.pool", f"{where}.mode"]
    if pool.sticky == "cookie" and route.alpn not in {(), HTTP1}:
        remedy = 'leave alpn away, or give these clients a pool with sticky = "source"'
        yield (
            Problem(
                f"{where}.alpn",
                f'pool {quoted(route.pool)} is sticky by cookie, which can be seen in "http/1.1" only',
                remedy,
            ),
            compared,
        )
    if route.mode == "passthrough" and pool.sticky in {"cookie", "identity"}:
        what = f"{quoted(route.pool)} is sticky by {pool.sticky}, which cannot be seen where TLS is not terminated"
        yield (
            Problem(f"{where}.pool", what, 'use a pool with sticky = "source" or "none"'),
            [f"{where}.mode"],
        )

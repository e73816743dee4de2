"""Rules of a pool's stickiness and balancing: most of these keys depend on other keys.

Never: reads the cookie secret (see `tls.cookie_secret`).
"""

from __future__ import annotations

import re

from relay.config.explain import quoted
from relay.config.listener_model import Route
from relay.config.model import Config
from relay.config.pool_model import Pool
from relay.config.rules.problem_list import ProblemList

HTTP1 = ("http/1.1",)
POSTGRES = ("postgresql",)

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, section 5.6.2
_PATH = re.compile(r"/[ -:<-~]*")  # RFC 6265, section 4.1.1
# One character of a cookie's value (RFC 6265, section 4.1.1) that no session id has.
_SEPARATOR = re.compile(r"""(?![;,"\\A-Za-z0-9])[!-~]|""")
_OF_COOKIES = (
    "cookie",
    "cookie_insert",
    "cookie_separator",
    "cookie_in_url",
    "sticky_fallback",
)
_OF_INSERTION = (
    "cookie_secret_file",
    "cookie_path",
    "cookie_secure",
    "cookie_http_only",
    "cookie_same_site",
)
_OF_HASHING = ("load_factor", "source_prefix_v4", "source_prefix_v6")


def alpn_of(config: Config, route: Route) -> tuple[str, ...]:
    """The protocols that a route offers.

    A route whose pool is sticky by cookie offers HTTP/1.1 by default, because the relay
    finds cookies in HTTP/1 only. A route with starttls offers PostgreSQL's protocol,
    which clients require that begin with TLS.
    """
    if route.starttls and not route.alpn:
        return POSTGRES
    pool = config.pool.get(route.pool)
    return HTTP1 if pool is not None and pool.sticky == "cookie" and not route.alpn else route.alpn


def check_stickiness(found: ProblemList, where: str, pool: Pool) -> None:
    """How the pool at this key path chooses a backend."""
    if pool.sticky == "cookie":
        _cookie(found, where, pool)
    else:
        _no_cookie(found, where, pool)
    if pool.sticky == "none" and pool.balance != "hash":
        for key in _OF_HASHING:
            if key in pool.model_fields_set:
                found.add(
                    f"{where}.{key}",
                    f'has no effect with sticky = "none" and balance = {quoted(pool.balance)}',
                    'remove it, or set sticky = "source"',
                    compared=[f"{where}.sticky", f"{where}.balance"],
                )
    elif 0 < pool.load_factor < 1:
        found.add(
            f"{where}.load_factor",
            f"{pool.load_factor:g} would leave connections without a backend",
            "use 1 or more, for example 1.25 for 25 % above the share; 0 is no limit",
        )
    if pool.on_down == "close" and pool.health is None:
        found.add(
            f"{where}.on_down",
            "has no effect without health checks, which find that a backend is down",
            f"add a [{where}.health], or remove it",
            compared=[f"{where}.health"],
        )


def _no_cookie(found: ProblemList, where: str, pool: Pool) -> None:
    given, sticky = pool.model_fields_set, f"{where}.sticky"
    what = f"has no effect with sticky = {quoted(pool.sticky)}"
    for key in _OF_COOKIES:
        if key in given and (key != "cookie_insert" or pool.cookie_insert):
            found.add(
                f"{where}.{key}", what, 'remove it, or set sticky = "cookie"', compared=[sticky]
            )
    for key in _OF_INSERTION:
        if key in given:
            found.add(f"{where}.{key}", what, "remove it", compared=[sticky])


def _cookie(found: ProblemList, where: str, pool: Pool) -> None:
    if not _TOKEN.fullmatch(pool.cookie):
        found.add(
            f"{where}.cookie",
            f"{quoted(pool.cookie)} cannot be a cookie's name",
            "use letters, digits, - and _, for example JSESSIONID",
        )
    if pool.cookie_in_url and not _TOKEN.fullmatch(pool.cookie_in_url):
        found.add(
            f"{where}.cookie_in_url",
            f"{quoted(pool.cookie_in_url)} cannot be a parameter's name in a URL",
            "use letters, digits, - and _, for example jsessionid",
        )
    if not _SEPARATOR.fullmatch(pool.cookie_separator):
        found.add(
            f"{where}.cookie_separator",
            f"{quoted(pool.cookie_separator)} is not one character that can separate a session id"
            " from a route",
            'write one of . : ! - _ or another punctuation character without ; , " \\, or "" if'
            " the whole value is the route",
        )
    if pool.cookie_insert:
        _insertion(found, where, pool)
        return
    for key in _OF_INSERTION:
        if key in pool.model_fields_set:
            found.add(
                f"{where}.{key}",
                "has no effect without cookie_insert = true",
                "remove it, or set cookie_insert = true",
                compared=[f"{where}.cookie_insert"],
            )


def _insertion(found: ProblemList, where: str, pool: Pool) -> None:
    if "cookie" not in pool.model_fields_set:
        found.add(
            f"{where}.cookie",
            f"{quoted(pool.cookie)} is a usual name for an application's cookie, which the relay's"
            " cookie would replace",
            'give the relay\'s cookie a name of its own, for example "RELAYID"',
        )
    if pool.cookie_secret_file is None:
        found.add(
            f"{where}.cookie_secret_file",
            "is missing, and cookie_insert needs it",
            "make one with: openssl rand -hex 32 > FILE; chmod 600 FILE",
        )
    if not _PATH.fullmatch(pool.cookie_path):
        found.add(
            f"{where}.cookie_path",
            f"{quoted(pool.cookie_path)} cannot be a cookie's path",
            "start it with /, and leave out semicolons",
        )
    if pool.cookie_same_site == "None" and not pool.cookie_secure:
        found.add(
            f"{where}.cookie_same_site",
            'browsers ignore a cookie with SameSite "None" that is not Secure',
            "remove cookie_secure = false",
            compared=[f"{where}.cookie_secure"],
        )


def check_route_stickiness(found: ProblemList, where: str, route: Route, pool: Pool) -> None:
    """Whether the route at this key path can read what its pool chooses backends by."""
    if pool.sticky == "cookie" and route.alpn not in {(), HTTP1}:
        found.add(
            f"{where}.alpn",
            f'pool {quoted(route.pool)} is sticky by cookie, which works with "http/1.1" only',
            'remove alpn, or use a pool with sticky = "source" for these clients',
            compared=[f"{where}.pool", f"{where}.mode"],
        )
    if route.mode == "passthrough" and pool.sticky in {"cookie", "identity"}:
        found.add(
            f"{where}.pool",
            f"{quoted(route.pool)} is sticky by {pool.sticky}, which passthrough routes cannot see",
            'use a pool with sticky = "source" or "none"',
            compared=[f"{where}.mode"],
        )

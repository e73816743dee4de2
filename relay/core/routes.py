"""From a server name to a route, with one or two dictionary look-ups.

The rules. An exact pattern matches its name. `*.example.com` matches names with exactly one label more than `example.com`, as in
certificates (RFC 6125, section 6.4.3): `a.example.com`, but neither `example.com` nor `a.b.example.com`, and the label must be one
that host names have. A route without patterns takes every name, also one that is no host name, and clients that send none. When several routes match, the first in the configuration wins, whatever its kind.

Never: parses bytes; knows what a route is made of.
Next: `relay.worker.inbound.step`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class RouteTable(Generic[T]):
    """An immutable table from server names to routes of any type."""

    __slots__ = ("_default", "_exact", "_wildcard")

    def __init__(self, exact: dict[str, T], wildcard: dict[str, T], default: T | None) -> None:
        self._exact = exact
        self._wildcard = wildcard
        self._default = default

    @classmethod
    def build(cls, entries: Sequence[tuple[tuple[str, ...], T]]) -> RouteTable[T]:
        """A table of (patterns, route) in the order of the configuration; no patterns means default.

        Raises ValueError for a `*` anywhere but as the whole first label; `config.rules.general` has refused it before.
        """
        exact: dict[str, T] = {}
        wildcard: dict[str, T] = {}
        default: T | None = None
        for pattern, route in _patterns(entries):
            if not pattern:
                default = route
                break  # it takes all that come to it: whatever follows is never reached
            if pattern.startswith("*."):
                wildcard.setdefault(pattern[2:], route)
            else:
                # An earlier wildcard has taken this name already: decided here, so that `find` need not compare orders.
                exact.setdefault(pattern, wildcard.get(pattern.partition(".")[2], route))
        return cls(exact, wildcard, default)

    def find(self, sni: str) -> T | None:
        """The route for a server name as `Hello.sni` has it ("" for none), or None when no route takes it."""
        route = self._exact.get(sni)
        if route is None and self._wildcard:
            label, _, rest = sni.partition(".")
            route = self._wildcard.get(rest)
            if route is not None and not _is_label(label):
                route = None
        return self._default if route is None else route

    def routes(self) -> list[T]:
        """Every route of the table; one with several patterns may be there several times."""
        default = [] if self._default is None else [self._default]
        return [*self._exact.values(), *self._wildcard.values(), *default]


def _is_label(text: str) -> bool:
    """Whether a wildcard may stand for it: letters, digits, hyphens, and the underscore that many names in use have."""
    return len(text) <= 63 and text.isascii() and text.replace("-", "").replace("_", "").isalnum()


def _patterns(entries: Sequence[tuple[tuple[str, ...], T]]) -> Iterator[tuple[str, T]]:
    """Every pattern with its route, as names are compared: lower case, no trailing dot; "" for a default."""
    for patterns, route in entries:
        for pattern in patterns or ("",):
            name = pattern.lower().removesuffix(".")
            if (patterns and not name) or "*" in name.removeprefix("*.") or name == "*.":
                raise ValueError(
                    f"server name pattern {pattern!r}: write a host name, or one with * as its whole first label"
                )
            yield name, route

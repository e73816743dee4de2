"""From a server name to a route, with one or two dictionary look-ups.

The rules. An exact pattern matches its name. `*.example.com` matches names with exactly
one more label than `example.com`, as in certificates (RFC 6125, section 6.4.3): it
matches `a.example.com`, but not `example.com` and not `a.b.example.com`. The label must
be a valid label of a host name. A route without patterns matches every name, even one
that is not a host name, and clients that send no name. If several routes match, the
first one in the configuration wins, whatever its kind of pattern.

Never: parses bytes; knows what a route consists of.
Next: `relay.worker.inbound.step`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class RouteTable(Generic[T]):
    """An immutable map from server names to routes of any type."""

    __slots__ = ("_default", "_exact", "_wildcard")

    def __init__(self, exact: dict[str, T], wildcard: dict[str, T], default: T | None) -> None:
        self._exact = exact
        self._wildcard = wildcard
        self._default = default

    @classmethod
    def build(cls, entries: Sequence[tuple[tuple[str, ...], T]]) -> RouteTable[T]:
        """Build a table from (patterns, route) in the order of the configuration.

        A route without patterns is the default. Raises ValueError for a `*` that is not
        the whole first label; `config.rules` refuses such a pattern before.
        """
        exact: dict[str, T] = {}
        wildcard: dict[str, T] = {}
        default: T | None = None
        for pattern, route in _patterns(entries):
            if not pattern:
                default = route
                break  # it matches everything, so the routes after it are never reached
            if pattern.startswith("*."):
                wildcard.setdefault(pattern[2:], route)
            else:
                # An earlier wildcard wins over this name. Deciding it here saves `find`
                # from comparing positions.
                exact.setdefault(pattern, wildcard.get(pattern.partition(".")[2], route))
        return cls(exact, wildcard, default)

    def find(self, sni: str) -> T | None:
        """The route for a name as in `Hello.sni` ("" is none); None if none matches."""
        route = self._exact.get(sni)
        if route is None and self._wildcard:
            label, _, rest = sni.partition(".")
            route = self._wildcard.get(rest)
            if route is not None and not _is_label(label):
                route = None
        return self._default if route is None else route

    def routes(self) -> list[T]:
        """Every route of the table; one with several patterns may appear twice."""
        default = [] if self._default is None else [self._default]
        return [*self._exact.values(), *self._wildcard.values(), *default]


def _is_label(text: str) -> bool:
    """Whether a wildcard may match this label: letters, digits, hyphens, underscores.

    The underscore is not allowed in host names, but many names in use have one.
    """
    return len(text) <= 63 and text.isascii() and text.replace("-", "").replace("_", "").isalnum()


def _patterns(entries: Sequence[tuple[tuple[str, ...], T]]) -> Iterator[tuple[str, T]]:
    """Every pattern with its route: lower case, no trailing dot; "" for the default."""
    for patterns, route in entries:
        for pattern in patterns or ("",):
            name = pattern.lower().removesuffix(".")
            if (patterns and not name) or "*" in name.removeprefix("*.") or name == "*.":
                raise ValueError(
                    f"server name pattern {pattern!r}: write a host name, or one whose whole first"
                    " label is *"
                )
            yield name, route

"""Which series of a route a reader gets: all that can occur, also those at zero.

A rule of Prometheus sees a first increase only if the series was there before, with
zero. Each route has 155 series. A relay with many routes leaves out those at zero,
apart from the successful results, and has all of them once, for connections without a
route.

Never: leaves out a series that is not zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relay.errors import Reason, Side
from relay.shared.entities import ROUTE, Key, Series
from relay.shared.label_values import HANDSHAKE_OK, HANDSHAKE_RESUMED, NO_ROUTE

MOST_ROUTES_WITH_ZEROS = 50

# The server name is not known yet.
_BEFORE_A_ROUTE = frozenset(
    (
        Reason.HELLO_TIMEOUT,
        Reason.NOT_TLS,
        Reason.PLAIN_HTTP,
        Reason.MALFORMED_HELLO,
        Reason.UNKNOWN_SNI,
        Reason.NO_SNI,
        Reason.PROXY_PEER_REFUSED,
        Reason.PROXY_HEADER_MISSING,
        Reason.PROXY_HEADER_INVALID,
        Reason.PLAIN_POSTGRES,
        Reason.PER_CLIENT_LIMIT,
        Reason.PER_CLIENT_RATE,
    )
)
_BEFORE_OR_AFTER = frozenset(
    (
        Reason.PEER_GONE,
        Reason.STARTTLS_REFUSED,
        Reason.BYTES_BEFORE_TLS,
        Reason.HALF_OPEN_LIMIT,
        Reason.HALF_OPEN_PER_CLIENT,
        Reason.DRAINING,
        Reason.GENERATION_ENDED,
        Reason.KICKED,
        Reason.NO_RESOURCES,
        Reason.INTERNAL_ERROR,
    )
)
# Sessions that were established.
_ESTABLISHED = frozenset(
    (
        Reason.FINISHED,
        Reason.TRUNCATED,
        Reason.IDLE_TIMEOUT,
        Reason.LINGER_TIMEOUT,
        Reason.DRAIN_TIMEOUT,
        Reason.DRAINED,
        Reason.MAX_SESSION,
        Reason.INBOUND_RESET,
        Reason.OUTBOUND_RESET,
        Reason.INBOUND_LOST,
        Reason.OUTBOUND_LOST,
        Reason.NO_BACKEND,
        Reason.CONNECTING_LIMIT,
        *(reason for reason in Reason if reason.endswith("_during_session")),
    )
)
_OF_BACKENDS = frozenset(
    reason
    for reason in Reason
    if reason.startswith("backend_") and reason not in _ESTABLISHED | {Reason.BACKEND_DOWN}
)
_OUTBOUND = _OF_BACKENDS | {Reason.NO_RESOURCES, Reason.INTERNAL_ERROR}
_INBOUND = frozenset(Reason) - _ESTABLISHED - _OF_BACKENDS - {Reason.BACKEND_DOWN}
_GOOD = frozenset((HANDSHAKE_OK, HANDSHAKE_RESUMED))


def _without_route(series: Series) -> bool:
    """Whether a connection that has no route yet can count in this series."""
    if series.name == "relay_connections_total":
        return True
    reason = Reason(series.labels[-1]) if series.labels[-1] not in _GOOD else None
    inbound = series.labels[0] != Side.OUTBOUND
    return inbound and reason in _BEFORE_A_ROUTE | _BEFORE_OR_AFTER


def _with_route(series: Series) -> bool:
    """Whether a connection of a route can count in this series."""
    if series.name == "relay_connections_total" or series.labels[-1] in _GOOD:
        return True
    reason = Reason(series.labels[-1])
    if series.name == "relay_handshakes_total":
        return reason in (_OUTBOUND if series.labels[0] == Side.OUTBOUND else _INBOUND) and (
            reason not in _BEFORE_A_ROUTE
        )
    return reason not in _BEFORE_A_ROUTE


# One of a route is to raise an alert, or is in every quotient.
_IN_ALERTS = frozenset((Reason.FINISHED, Reason.INTERNAL_ERROR))

_COUNTERS = tuple(enumerate(ROUTE.counters))
_UNROUTED = frozenset(number for number, series in _COUNTERS if _without_route(series))
_ROUTED = frozenset(number for number, series in _COUNTERS if _with_route(series))
_FEW = frozenset(
    number
    for number, series in _COUNTERS
    if number in _ROUTED and (not series.labels or series.labels[-1] in _GOOD | _IN_ALERTS)
)


def route_series(keys: Sequence[Key], cells: Sequence[int]) -> Iterator[tuple[Series, int]]:
    """The series of all routes that a reader gets, with their values.

    `cells` has the counters of each route, in the order of `keys`.
    """
    width = len(ROUTE.counters)
    all_zeros = len(keys) <= MOST_ROUTES_WITH_ZEROS
    usual, unrouted = (_ROUTED, _UNROUTED) if all_zeros else (_FEW, _UNROUTED | _ROUTED)
    for number, key in enumerate(keys):
        found = cells[number * width : (number + 1) * width]
        at_zero = unrouted if key[-1] == NO_ROUTE else usual
        shown = {offset for offset, value in enumerate(found) if value} if any(found) else set()
        for offset in sorted(at_zero | shown):
            series = ROUTE.counters[offset]
            yield Series(series.name, key + series.labels), found[offset]

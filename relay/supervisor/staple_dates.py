"""Which OCSP responses the routes staple, and which have expired: for operators.

Workers decide by themselves from the same dates. This module reports it.

Never: reads or checks a response.
Next: `relay.tls.staple.Staple`
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from relay.shared.messages import StapleFact
from relay.supervisor.prepared import Prepared
from relay.tls.generation import InboundRoute
from relay.tls.staple import Staple

EVERY_S = 1.0

log = logging.getLogger(__name__)


class _Use(NamedTuple):
    listener: str
    route: InboundRoute
    staple: Staple


class StapleDates:
    """The responses of the serving generation. `on_change`: `facts` has changed."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._prepared: Prepared | None = None
        self._uses: tuple[_Use, ...] = ()
        self._was_usable: dict[str, bool] = {}
        self._facts: list[StapleFact] = []
        self._check_at = 0.0

    def step(self, now: float, now_at: float, prepared: Prepared) -> None:
        """Check once a second."""
        if now < self._check_at:
            return
        self._check_at = now + EVERY_S
        if prepared is not self._prepared:
            self._prepared = prepared
            self._uses = tuple(_uses(prepared))
            # What cannot be stapled at the start was told by the check of the files.
            self._was_usable = {each.route.where: each.staple.until_at > 0 for each in self._uses}
        for each in self._uses:
            self._tell(each, now_at)
        facts = [_fact(each, now_at) for each in self._uses]
        if facts != self._facts:
            self._facts = facts
            self._on_change()

    def _tell(self, use: _Use, now_at: float) -> None:
        usable = use.staple.until_at > now_at
        if usable is self._was_usable[use.route.where]:
            return
        self._was_usable[use.route.where] = usable
        where = f"{use.route.where}.ocsp_response"
        if usable:
            log.info("%s: %s is stapled", where, use.staple.file)
        else:
            log.warning(
                "%s: %s is not stapled any more: it %s; have the job that fetches it write a"
                " newer one",
                where,
                use.staple.file,
                use.staple.why or "has expired",
            )

    def facts(self) -> list[StapleFact]:
        """One for each route with `ocsp_response`."""
        return self._facts


def _uses(prepared: Prepared) -> Iterator[_Use]:
    for listener, routes in prepared.generation.inbound.items():
        for route in routes:
            if route.staple is not None:
                yield _Use(listener, route, route.staple)


def _fact(use: _Use, now_at: float) -> StapleFact:
    usable = use.staple.until_at > now_at
    return {
        "listener": use.listener,
        "route": use.route.label,
        "file": str(use.staple.file),
        "next_update": use.staple.until_at if usable else 0.0,
        "why": "" if usable else use.staple.why or "has expired",
    }

"""Which revocation lists are in use, and which of them have expired: for operators.

Workers decide by themselves from the same dates. This module reports it: when a list
expires, and every hour while an expired one still counts.

Never: refuses anybody itself, or reads a list.
Next: `relay.tls.revocation.judge.why_revoked`
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

from relay.config.model import Config
from relay.dates import minute
from relay.shared.messages import CrlFact
from relay.supervisor.prepared import Prepared
from relay.tls.revocation.revoked_set import ListInfo
from relay.tls.revocation.trust_sets import trust_sets_of

EVERY_S = 1.0
REPEAT_S = 3600.0
# A set may have thousands of lists.
MOST_SHOWN = 1000

log = logging.getLogger(__name__)


class _Age(StrEnum):
    """What the dates of a list mean for the certificates that it covers."""

    CURRENT = "current"
    GRACE = "grace"
    EXPIRED = "expired"


class _Use(NamedTuple):
    """A list, and how one route or pool uses it."""

    info: ListInfo
    where: str
    grace_s: float  # 0 without grace

    def age(self, now_at: float) -> _Age:
        """What its dates mean now."""
        until_at = self.info.next_update
        if until_at is None or now_at <= until_at:
            return _Age.CURRENT
        return _Age.GRACE if now_at <= until_at + self.grace_s else _Age.EXPIRED

    @property
    def key(self) -> tuple[str, str, str]:
        """The same for a list and its successor."""
        return self.where, self.info.issuer, self.info.source


class ListDates:
    """The lists of the serving generation. `on_change`: `facts` has changed."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._seen: tuple[object, ...] = ()
        self._uses: tuple[_Use, ...] = ()
        self._told: dict[tuple[str, str, str], tuple[_Age, float]] = {}
        self._check_at = 0.0

    def step(self, now: float, now_at: float, prepared: Prepared) -> None:
        """Check once a second."""
        if now < self._check_at:
            return
        self._check_at = now + EVERY_S
        sets = prepared.generation.revoked
        seen = (prepared, *sets.values())
        if [*map(id, seen)] != [*map(id, self._seen)]:
            self._seen = seen
            lists = {name: each.lists for name, each in sets.items()}
            self._uses = tuple(_uses(prepared.config, lists))
            kept = {each.key for each in self._uses}
            self._told = {key: told for key, told in self._told.items() if key in kept}
            self._on_change()
        for use in self._uses:
            self._tell(use, now, now_at)

    def _tell(self, use: _Use, now: float, now_at: float) -> None:
        age = use.age(now_at)
        before, told_at = self._told.get(use.key, (_Age.CURRENT, 0.0))
        if age is before and (age is not _Age.GRACE or now < told_at + REPEAT_S):
            return
        self._told[use.key] = age, now
        if age is _Age.CURRENT:
            log.info("%s: %s has taken the place of an expired list", use.where, use.info.name)
        elif age is _Age.GRACE:
            until = (use.info.next_update or 0.0) + use.grace_s
            log.warning(
                "%s: %s expired on %s and counts until %s; get the CA's newest list",
                use.where,
                use.info.name,
                minute(use.info.next_update or 0.0),
                minute(until),
            )
        else:
            log.error(
                "%s: %s expired on %s: what it covers is refused; get the CA's newest list",
                use.where,
                use.info.name,
                minute(use.info.next_update or 0.0),
            )

    def facts(self) -> list[CrlFact]:
        """The lists, each once, with the longest grace that it gets."""
        found: dict[tuple[str, str], CrlFact] = {}
        for use in self._uses:
            info = use.info
            before = found.get((info.issuer, info.source))
            if before is not None:
                before["grace_s"] = max(before["grace_s"], use.grace_s)
            elif len(found) < MOST_SHOWN:
                found[info.issuer, info.source] = {
                    "issuer": info.issuer,
                    "source": info.source,
                    "number": info.number,
                    "this_update": info.this_update,
                    "next_update": info.next_update,
                    "entries": info.entries,
                    "grace_s": use.grace_s,
                }
        return list(found.values())


def _uses(config: Config, lists: dict[str, tuple[ListInfo, ...]]) -> Iterator[_Use]:
    for name, trust_set in trust_sets_of(config).items():
        for use in trust_set.uses:
            grace_s = use.crl.grace_s if use.crl.expired == "grace" else 0.0
            for info in lists.get(name, ()):
                yield _Use(info, use.where, grace_s)

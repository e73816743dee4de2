"""Remembers the files that differ from what is in use, and tells operators why.

Each reason is logged once, and again as an error if the files stay like that.

Never: reads a file, or decides whether it can be used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from relay.errors import Problem
from relay.shared.messages import PendingFact
from relay.tls.certificates.file_sets import SetKey

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pending:
    """A set whose files are not in use. `since_at` is Unix time."""

    name: str
    files: tuple[Path, ...]
    why: str
    since_at: float
    is_loud: bool = False


class PendingFiles:
    """The sets of files that are not in use, each with a reason."""

    def __init__(self) -> None:
        self._sets: dict[SetKey, _Pending] = {}

    @property
    def keys(self) -> frozenset[SetKey]:
        """The sets."""
        return frozenset(self._sets)

    def add(
        self,
        key: SetKey,
        name: str,
        files: tuple[Path, ...],
        problems: Iterable[Problem],
        now_at: float,
    ) -> bool:
        """A set cannot be used. True if that, or its reason, is new."""
        why = "; ".join(map(str, problems))
        pending = self._sets.get(key)
        if pending is not None and pending.why == why:
            return False
        since_at = now_at if pending is None else pending.since_at
        self._sets[key] = _Pending(name, files, why, since_at)
        log.warning("%s: what is in use stays in use: %s", name, why)
        return True

    def remove(self, key: SetKey, *, renewed: bool) -> None:
        """A set is in use now, or is as it was before."""
        pending = self._sets.pop(key, None)
        if pending is not None and not renewed:
            log.info("%s: the files are those in use again", pending.name)

    def clear(self) -> bool:
        """Another generation has read all files anew. True if there were any."""
        had_any = bool(self._sets)
        self._sets.clear()
        return had_any

    def step(self, now_at: float, loud_s: float) -> None:
        """Log as an error, once, what has lasted this long."""
        for pending in self._sets.values():
            if not pending.is_loud and now_at - pending.since_at >= loud_s:
                pending.is_loud = True
                since = datetime.fromtimestamp(pending.since_at).astimezone()
                log.error(
                    "%s: not in use since %s: %s", pending.name, f"{since:%H:%M:%S}", pending.why
                )

    def facts(self) -> list[PendingFact]:
        """As JSON types, for the metrics and `relay status`: one entry per file."""
        return list(self._facts())

    def _facts(self) -> Iterator[PendingFact]:
        known = set()
        for pending in self._sets.values():
            for file in pending.files:
                if file not in known:
                    known.add(file)
                    yield {"file": str(file), "why": pending.why, "since": pending.since_at}

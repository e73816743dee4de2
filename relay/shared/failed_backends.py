"""When all backends of a pool have failed: who may end that, and who may try a failed backend.

A failed backend is not used until its `retry_until` has passed. Then one session tries it, over
all workers: it claims the backend for a short time, and others go elsewhere meanwhile. A claim
is one plain store, so two workers may win it in the same moment, and both try: that is harmless.
A claim ends by itself when its time is over, so a worker that dies keeps nobody out.

The first backend that answers after all had failed ends the outage: every other one may be
tried at once, by one session each. It would get all clients for `retry_s` otherwise.

Never: believes a cell. Another process may have written anything, so a time that no
configuration can ask for counts as none.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.shared.catalogue import (
    HEALTH,
    HEALTH_DOWN,
    MODE_OVERRIDE,
    RETRY_UNTIL_MS,
    TRIAL_UNTIL_MS,
)
from relay.shared.scoreboard import Layout, monotonic_ms
from relay.shared.sealed_memory import Cells
from relay.shared.state_cells import MOST_RETRY_MS

MOST_TRIAL_MS = 2 * 3_600_000
# Values of a MODE_OVERRIDE cell: a backend that drains or is disabled is no backend to wait for.
_NOT_SERVING = frozenset((2, 3))


class FailedBackends:
    """The failures of one pool; backends are their indexes in the configuration."""

    __slots__ = ("_health", "_modes", "_retry", "_shared", "_trial")

    def __init__(self, shared: Cells, layout: Layout, backends: Sequence[tuple[str, str]]) -> None:
        self._shared = shared
        self._retry = [layout.cell(RETRY_UNTIL_MS, *each) for each in backends]
        self._trial = [layout.cell(TRIAL_UNTIL_MS, *each) for each in backends]
        self._health = [layout.cell(HEALTH, *each) for each in backends]
        self._modes = [layout.cell(MODE_OVERRIDE, *each) for each in backends]

    def usable(self, backend: int) -> bool:
        """Whether a session may go there: it has not failed, or waits for somebody to try it."""
        shared = self._shared
        if shared[self._health[backend]] == HEALTH_DOWN:
            return False
        until_ms = shared[self._retry[backend]]
        if until_ms == 0:
            return True
        now_ms = monotonic_ms()
        if 0 < until_ms - now_ms <= MOST_RETRY_MS:
            return False
        return not 0 < shared[self._trial[backend]] - now_ms <= MOST_TRIAL_MS

    def has_failed(self, backend: int) -> bool:
        """Whether it has not answered since it failed, or its health checks say that it is down."""
        shared = self._shared
        return bool(shared[self._retry[backend]] or shared[self._health[backend]] == HEALTH_DOWN)

    def claim(self, backend: int, trial_ms: int) -> int:
        """Keep others from the backend while we try it; the claim, for `release`."""
        until_ms = monotonic_ms() + trial_ms
        self._shared[self._trial[backend]] = until_ms
        return until_ms

    def release(self, backend: int, claim: int) -> None:
        """The trial is over without an answer. A claim of another stays."""
        if self._shared[self._trial[backend]] == claim:
            self._shared[self._trial[backend]] = 0

    def fail(self, backend: int, retry_ms: int) -> bool:
        """Nobody uses the backend for so long. True when this is news."""
        now_ms = monotonic_ms()
        news = not 0 < self._shared[self._retry[backend]] - now_ms <= MOST_RETRY_MS
        self._shared[self._retry[backend]] = now_ms + retry_ms
        self._shared[self._trial[backend]] = 0
        return news

    def failed_at_ms(self, backend: int, retry_ms: int) -> int:
        """When the backend failed, 0 for one that has not."""
        until_ms: int = self._shared[self._retry[backend]]
        return until_ms - retry_ms if until_ms else 0

    def answered(self, backend: int) -> None:
        """The backend works again; so may the others, where none did."""
        self.end_total()
        self._shared[self._retry[backend]] = 0
        self._shared[self._trial[backend]] = 0

    def end_total(self) -> None:
        """If all backends have failed, let one session each try them at once."""
        shared = self._shared
        serving = [i for i, cell in enumerate(self._modes) if shared[cell] not in _NOT_SERVING]
        if not all(self.has_failed(i) for i in serving):
            return
        now_ms = monotonic_ms()
        for i in serving:
            shared[self._retry[i]] = min(shared[self._retry[i]], now_ms)

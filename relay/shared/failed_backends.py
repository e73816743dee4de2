"""Which backends of a pool have failed, and which session may try them again.

A failed backend is not used until its `retry_until` has passed. Then one session, over
all workers, tries it: the session claims the backend for a short time, and others use
other backends meanwhile. A claim is one plain store. Two workers may claim a backend in
the same moment; then both try it, which is harmless. A claim expires, so the claim of a
worker that died blocks the backend only for a short time.

When all backends have failed, the first one that answers ends the outage: every other
backend may be tried at once, by one session each. Otherwise the first one would get all
clients for `retry_s`.

Never: trusts a cell. A time that no configuration can ask for counts as no time.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.core.candidates import Mode
from relay.core.overrides import MODE_CODES
from relay.shared.cell_layout import Layout
from relay.shared.entities import (
    HEALTH,
    HEALTH_DOWN,
    MODE_OVERRIDE,
    RETRY_UNTIL_MS,
    TRIAL_UNTIL_MS,
)
from relay.shared.scoreboard import monotonic_ms
from relay.shared.sealed_memory import Cells
from relay.shared.state_cells import is_waiting

MOST_TRIAL_MS = 2 * 3_600_000
# Values of a MODE_OVERRIDE cell. Such a backend cannot end an outage.
_NOT_SERVING = frozenset((MODE_CODES[Mode.DRAIN], MODE_CODES[Mode.DISABLED]))


class FailedBackends:
    """The failures of one pool. A backend is its index in the configuration."""

    __slots__ = ("_health", "_modes", "_retry", "_shared", "_trial")

    def __init__(self, shared: Cells, layout: Layout, backends: Sequence[tuple[str, str]]) -> None:
        self._shared = shared
        self._retry = [layout.cell(RETRY_UNTIL_MS, *each) for each in backends]
        self._trial = [layout.cell(TRIAL_UNTIL_MS, *each) for each in backends]
        self._health = [layout.cell(HEALTH, *each) for each in backends]
        self._modes = [layout.cell(MODE_OVERRIDE, *each) for each in backends]

    def usable(self, backend: int) -> bool:
        """Whether a session may use the backend now.

        True for one that has not failed, and for one whose retry time has passed while
        no session has claimed it.
        """
        shared = self._shared
        if shared[self._health[backend]] == HEALTH_DOWN:
            return False
        until_ms = shared[self._retry[backend]]
        if until_ms == 0:
            return True
        now_ms = monotonic_ms()
        if is_waiting(until_ms, now_ms):
            return False
        return not 0 < shared[self._trial[backend]] - now_ms <= MOST_TRIAL_MS

    def has_failed(self, backend: int) -> bool:
        """Whether the backend failed and has not answered since, or is down."""
        shared = self._shared
        return bool(shared[self._retry[backend]] or shared[self._health[backend]] == HEALTH_DOWN)

    def claim(self, backend: int, trial_ms: int) -> int:
        """Reserve the backend for one trial. Returns the claim, for `release`."""
        until_ms = monotonic_ms() + trial_ms
        self._shared[self._trial[backend]] = until_ms
        return until_ms

    def release(self, backend: int, claim: int) -> None:
        """End a trial that got no answer. The claim of another session stays."""
        if self._shared[self._trial[backend]] == claim:
            self._shared[self._trial[backend]] = 0

    def fail(self, backend: int, retry_ms: int) -> bool:
        """Mark the backend failed for this time. True if it was not marked already."""
        now_ms = monotonic_ms()
        was_waiting = is_waiting(self._shared[self._retry[backend]], now_ms)
        self._shared[self._retry[backend]] = now_ms + retry_ms
        self._shared[self._trial[backend]] = 0
        return not was_waiting

    def failed_at_ms(self, backend: int, retry_ms: int) -> int:
        """When the backend failed; 0 for a backend that has not."""
        until_ms: int = self._shared[self._retry[backend]]
        return until_ms - retry_ms if until_ms else 0

    def answered(self, backend: int) -> None:
        """The backend works again. If all had failed, the others may be tried too."""
        self.end_outage()
        self._shared[self._retry[backend]] = 0
        self._shared[self._trial[backend]] = 0

    def end_outage(self) -> None:
        """If all backends have failed, let one session try each of them at once."""
        shared = self._shared
        serving = [i for i, cell in enumerate(self._modes) if shared[cell] not in _NOT_SERVING]
        if not all(self.has_failed(i) for i in serving):
            return
        now_ms = monotonic_ms()
        for i in serving:
            shared[self._retry[i]] = min(shared[self._retry[i]], now_ms)

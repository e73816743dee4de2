"""Starts, watches and replaces a child: the admin process, the checker, the watcher.

A child that dies early is started again after a growing delay. A child that is silent,
or does not end when asked, gets SIGABRT, which makes it print where it hangs, then
SIGKILL.

Never: knows what a child does; waits for one, except in `close`.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from relay.core.fleet_view import Rules
from relay.core.respawn import respawn_delay_s
from relay.supervisor.process import reap, send

STALLED_S = 5.0  # a longer pause between two turns means that the supervisor did not run

log = logging.getLogger(__name__)


def _nothing() -> None:
    """The default of `on_end`."""


class ChildProcess:
    """One process that the supervisor keeps running.

    `name` and `meanwhile` (what happens without the child) are words for messages.
    `stop_patience_s` is how long the child may take to end when asked.
    `on_end` is called after the child was reaped.
    """

    def __init__(
        self,
        name: str,
        rules: Rules,
        stop_patience_s: float,
        *,
        meanwhile: str = "",
        on_end: Callable[[], None] = _nothing,
    ) -> None:
        self.name = name
        self.pid: int | None = None
        self.started_at = 0.0
        self._rules = rules
        self._stop_patience_s = stop_patience_s
        self._meanwhile = f"{meanwhile}; " if meanwhile else ""
        self._on_end = on_end
        self._early_deaths = 0
        self._start_at = 0.0
        self._stop_requested_at: float | None = None
        self._aborted_at: float | None = None
        self._turn_at = 0.0
        self._trusted_from_at = 0.0  # silence before this does not count

    @property
    def stop_requested(self) -> bool:
        """Whether the running child was asked to end."""
        return self._stop_requested_at is not None

    def begin_turn(self, now: float) -> None:
        """Once a turn: reap the child if it ended, and plan the next start."""
        if now - self._turn_at > STALLED_S:
            self._trusted_from_at = now
        self._turn_at = now
        started_at, stop_requested = self.started_at, self.stop_requested
        status = self._reap()
        if status is None:
            return
        if stop_requested:
            self._start_at = now
            return
        age_s = now - started_at
        self._early_deaths = self._early_deaths + 1 if age_s < self._rules.early_death_s else 0
        delay_s = respawn_delay_s(self._early_deaths, self._rules)
        self._start_at = now + delay_s
        log.error(
            "%s %s after %.1f s; %sit is replaced %s",
            self.name,
            status,
            age_s,
            self._meanwhile,
            f"in {delay_s:g} s" if delay_s else "at once",
        )

    def is_due(self, now: float) -> bool:
        """Whether no child runs and the next one may start."""
        return self.pid is None and now >= self._start_at

    def start(self, now: float, launch: Callable[[], int]) -> bool:
        """Start the child. True if it started.

        `launch` returns the pid, or raises OSError.
        """
        try:
            self.pid = launch()
        except OSError as error:
            self._early_deaths += 1
            delay_s = max(
                respawn_delay_s(self._early_deaths, self._rules), self._rules.first_delay_s
            )
            self._start_at = now + delay_s
            log.error(
                "%s cannot be started: %s; %stried again in %g s",
                self.name,
                error,
                self._meanwhile,
                delay_s,
            )
            return False
        self.started_at = now
        self._stop_requested_at = self._aborted_at = None
        return True

    def take(self, pid: int | None) -> None:
        """Watch a child that the version before an upgrade has started."""
        self.pid, self.started_at = pid, time.monotonic()

    def start_afresh(self, now: float) -> None:
        """Forget earlier deaths: the next child starts at once, with another task."""
        self._start_at, self._early_deaths = now, 0

    def request_stop(self) -> None:
        """Ask the child to end (SIGTERM), once. It is replaced without a delay."""
        if self.pid is not None and not self.stop_requested:
            self._stop_requested_at = time.monotonic()
            send(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        if self.pid is not None:
            send(self.pid, signal.SIGKILL)

    def watch(self, now: float, heartbeat_at: float, silence_limit_s: float) -> None:
        """End the child if it hangs. `heartbeat_at` is its last sign of life."""
        if self.pid is None:
            return
        if self._aborted_at is not None:
            if now >= self._aborted_at + self._rules.abort_grace_s:
                self.kill()
            return
        why = self._why_it_hangs(now, heartbeat_at, silence_limit_s)
        if why:
            log.error(
                "%s (pid %d) hangs: %s; it gets SIGABRT, to make it print where",
                self.name,
                self.pid,
                why,
            )
            self._aborted_at = now
            send(self.pid, signal.SIGABRT)

    def _why_it_hangs(self, now: float, heartbeat_at: float, silence_limit_s: float) -> str:
        """Empty while it does not hang."""
        if (
            self._stop_requested_at is not None
            and now >= self._stop_requested_at + self._stop_patience_s
        ):
            return f"it did not end within {self._stop_patience_s:g} s of SIGTERM"
        silent_s = now - max(heartbeat_at, self.started_at, self._trusted_from_at)
        return f"no heartbeat for {silent_s:.1f} s" if silent_s > silence_limit_s else ""

    def _reap(self) -> str | None:
        """How the child ended; None while it runs, or when there is none."""
        if self.pid is None:
            return None
        status = reap(self.pid)
        if status is None:
            return None
        self.pid = None
        self._on_end()
        return str(status)

    def abandon(self) -> None:
        """SIGKILL. Returns when the child has ended, or after `stop_patience_s`."""
        self.kill()
        deadline = time.monotonic() + self._stop_patience_s
        while self._reap() is None and self.pid is not None and time.monotonic() < deadline:
            time.sleep(0.002)

    def close(self) -> None:
        """End the child: SIGTERM, then SIGKILL. Returns when it has ended."""
        if self.pid is None or self._reap() is not None:
            return
        send(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._stop_patience_s
        while self._reap() is None and self.pid is not None:
            if time.monotonic() > deadline:
                self.kill()
                deadline = float("inf")
            time.sleep(0.002)

"""The supervisor: one loop over its `relay.supervisor.parts`.

The loop serves signals, the control socket, the admin channel and timers.

Never: accepts a client's connection, reads its bytes, or runs a second thread.
"""

from __future__ import annotations

import gc
import logging
import time

import relay
from relay.core.fleet_view import Shutdown
from relay.logs import messages
from relay.sandbox.confinement import describe
from relay.supervisor.children import STALLED_S
from relay.supervisor.parts import Parts
from relay.supervisor.prepared import Prepared
from relay.supervisor.process import reap_orphans
from relay.supervisor.upgrade import Upgrades

BEAT_S = 1.0
TRANSITION_S = 0.02  # how often the scoreboard is read while a worker changes its state

log = logging.getLogger(__name__)


class Supervisor:
    """Runs the loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.fleet, self.reloads = parts.fleet, parts.reloads
        self._upgrades = Upgrades(parts)
        parts.open_files.add(self._upgrades.close, self._upgrades.close_files)
        parts.upgrade = self._upgrades.request
        self.reloads.upgrading = lambda: self._upgrades.under_way or parts.takeover is not None
        self._turn_at, self._beat_at = time.monotonic(), 0.0

    def run(self) -> int:
        """Run until the relay was told to end and every worker has ended."""
        serving = self._parts.generations.serving
        self._parts.status.publish()
        log.info("%s", describe(serving.config.log.access))
        log.info(
            "relay %s starts %d workers",
            relay.__version__,
            serving.slots,
            extra={"config": str(self._parts.config_path), "generation": serving.generation.number},
        )
        # Workers share the memory that exists now. The collector would write to it.
        gc.collect()
        gc.freeze()
        while not self.fleet.ended:
            self._turn(time.monotonic())
            for key, events in self._parts.selector.select(self._timeout_s()):
                key.data(events)
        self.reloads.abandon("all workers have ended")
        self._answer_last_clients()
        log.info("all workers have ended")
        return 0

    def _answer_last_clients(self) -> None:
        """Answer clients of the control socket that connected before the end."""
        for _ in ("accept", "read the request", "send the reply"):
            for key, events in self._parts.selector.select(0):
                key.data(events)

    def _timeout_s(self) -> float:
        """How long the loop may wait for an event."""
        if self.reloads.eager or self._parts.disabled.has_messages:
            return 0
        if (
            self._parts.takeover
            or self.fleet.transition_pending
            or self.reloads.handing_over
            or self.reloads.renewing
        ):
            return TRANSITION_S
        due_at = min(
            self._beat_at + BEAT_S,
            self._parts.notifier.watchdog_at,
            self.fleet.next_start_at,
            self._parts.channel.resume_at,
            self._parts.commands.kicks.due_at,
            self._parts.ending.drain_at,
        )
        return max(0.001, due_at - time.monotonic())

    def _turn(self, now: float) -> None:
        """One turn of the loop, between two waits."""
        if now - self._turn_at > STALLED_S:
            # The supervisor did not run (a stopped machine, a debugger). The workers
            # get time to send a heartbeat.
            self.fleet.excuse_heartbeats(now)
        self._turn_at = now
        messages.flush()
        if now - self._beat_at >= BEAT_S:
            self._beat_at = now
            self._parts.scoreboards.beat()
            self.fleet.workers.copy_rows()
        self._parts.notifier.watchdog(now)
        self._parts.store.step()
        self._parts.commands.kicks.step(now)
        self._parts.ending.step(now)
        decision = self.fleet.step(now)
        if decision is not None:
            self.reloads.decided(now, decision)
        self.reloads.step(now)
        self._upgrades.step(now)
        self._take_over(now)
        if self.fleet.ending is Shutdown.NO:
            self._keep_up(now, self._parts.generations.serving)
        elif self.fleet.ending is Shutdown.DRAIN:
            self._parts.watcher.step(now, self._parts.generations.serving)
        self._parts.overrides.step(time.time())
        self._parts.scoreboards.step()
        self._parts.status.step(time.monotonic())
        self._parts.channel.step(now)
        if not self.reloads.handing_over:
            self._parts.announcer.announce()
        self._parts.control.expire(now)
        reap_orphans()

    def _take_over(self, now: float) -> None:
        """After an upgrade: go on with taking over."""
        takeover = self._parts.takeover
        if takeover is not None:
            takeover.step(now)
            if takeover.done:
                self._parts.takeover = None

    def _keep_up(self, now: float, serving: Prepared) -> None:
        """What is done until the relay is told to end."""
        self._parts.admin.step(
            now, serving, self._parts.scoreboards, self._parts.lifeline_fd, self._parts.channel
        )
        self._parts.checker.step(now, serving)
        self._parts.watcher.step(now, serving)
        self._parts.upkeep.step(now, serving.identity)
        scoreboard = self._parts.scoreboards.generation(self._parts.generations.number)
        self._parts.disabled.step(now, time.time(), serving, scoreboard)
        self._parts.dates.step(now, time.time(), serving)

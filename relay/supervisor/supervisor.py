"""The supervisor: everything that lives as long as the relay does, and one loop.

The loop serves signals, the control socket, the admin channel and timers.

Never: accepts a client's connection, reads its bytes, or runs a second thread.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import relay
from relay.core.fleet_view import Rules, Shutdown
from relay.logs import messages
from relay.sandbox.confinement import describe
from relay.supervisor.admin_channel import AdminChannel
from relay.supervisor.admin_process import AdminProcess
from relay.supervisor.announcer import Announcer
from relay.supervisor.checker_process import CheckerProcess, open_health_file
from relay.supervisor.children import STALLED_S
from relay.supervisor.commands import Commands
from relay.supervisor.control import Client, ControlServer
from relay.supervisor.control_client import control_path
from relay.supervisor.disabled import Disabled
from relay.supervisor.file_dates import FileDates
from relay.supervisor.fleet import Fleet
from relay.supervisor.generations import Generations
from relay.supervisor.inspection import PrepareRequest
from relay.supervisor.kicks import Kicks
from relay.supervisor.open_files import OpenFiles
from relay.supervisor.operator_signals import OperatorSignals
from relay.supervisor.override_store import OverrideStore
from relay.supervisor.prepare import finish
from relay.supervisor.prepared import Prepared, begin_scoreboard, configured_rules
from relay.supervisor.preparer import Preparer
from relay.supervisor.process import raise_file_limit, reap_orphans
from relay.supervisor.reload import Reloads
from relay.supervisor.renewals import Renewals
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.signals import SignalPipe
from relay.supervisor.slot_sockets import SlotSockets
from relay.supervisor.state_dir import StateDir
from relay.supervisor.status import Status
from relay.supervisor.switchover import Switchover
from relay.supervisor.systemd import Notifier
from relay.supervisor.unix_sockets import open_control
from relay.supervisor.updates import Updates
from relay.supervisor.upkeep import Upkeep
from relay.supervisor.watcher import Watcher
from relay.supervisor.workers import Workers
from relay.worker.main import WorkerSpec

BEAT_S = 1.0
TRANSITION_S = 0.02  # how often the scoreboard is read while a worker changes its state

Work = Callable[[WorkerSpec], int | None]

log = logging.getLogger(__name__)


class Supervisor:
    """Opens everything, and runs the loop. Raises ConfigError and StartupError."""

    def __init__(
        self, config_path: Path, work: Work, rules: Rules | None, *, strict: bool = False
    ) -> None:
        self._config_path = config_path
        self._open_files = OpenFiles()
        try:
            prepared = finish(PrepareRequest(config_path, strict=strict))
            rules = rules or configured_rules(Rules(), prepared.config.relay)
            self._open(prepared, rules)
            self._start_children(prepared, work, rules)
            self._connect_parts(rules, strict=strict)
        except BaseException:
            self.close()
            raise
        self._turn_at, self._beat_at = time.monotonic(), 0.0

    def _open(self, prepared: Prepared, rules: Rules) -> None:
        """Open the state directory, the sockets and the shared memory."""
        config, opened = prepared.config, self._open_files
        path = config.relay.state_dir
        self.state_dir = StateDir(path)
        opened.add(self.state_dir.close, self.state_dir.close_files)
        raise_file_limit()
        self.notifier = Notifier()
        opened.add(self.notifier.close, self.notifier.close)
        self.generations = Generations(prepared, SlotSockets().extend(config, prepared.slots))
        opened.add(self.generations.close_files)
        # A pipe that is never written to. When the supervisor dies, its only write end
        # closes, and every child reads the end of file.
        self.lifeline_fd, lifeline_end = os.pipe()
        opened.add(lambda: os.close(self.lifeline_fd))
        opened.add(lambda: os.close(lifeline_end), lambda: os.close(lifeline_end))
        self.admin = AdminProcess(config.admin, prepared.password, path, rules)
        opened.add(self.admin.close, self.admin.close_files)
        control = open_control(control_path(path))
        opened.add(lambda: self.state_dir.remove(control_path(path)))
        self.scoreboards = Scoreboards()
        opened.add(self.scoreboards.close_reader, self.scoreboards.close_files)
        begin_scoreboard(self.scoreboards, prepared)
        self.signals = SignalPipe()
        opened.add(self.signals.close, self.signals.close_files)
        # poll, not epoll: an epoll descriptor would be shared with every child.
        self.selector = selectors.PollSelector()
        self.selector.register(self.signals, selectors.EVENT_READ, lambda _: self._on_signals())
        self.overrides = OverrideStore(path, self.scoreboards, config, self._publish)
        self.channel = AdminChannel(self.selector, self.overrides.answer)
        opened.add(self.channel.close, self.channel.close_files)
        self.control = ControlServer(control, self.selector, self._on_command)
        # A client that waits for the end may then start the next relay at once.
        opened.add_last_closed(self.control.close, self.control.close_files)

    def _start_children(self, prepared: Prepared, work: Work, rules: Rules) -> None:
        """Make the objects that keep the children running; the loop starts these."""
        self.updates = Updates()
        self._open_files.add(self.updates.close_files, self.updates.close_files)
        close_in_child = self._open_files.close_in_child
        workers = Workers(self.scoreboards, self.lifeline_fd, work, close_in_child, self.updates)
        self.fleet = Fleet(workers, self.generations, rules)
        self._open_files.add(self.fleet.close)
        self.checker = CheckerProcess(
            self.scoreboards,
            self.lifeline_fd,
            health_file=open_health_file(self.state_dir.path, prepared.identity),
            close_in_child=self._close_in_child,
            rules=rules,
            updates=self.updates,
        )
        self._open_files.add(self.checker.close)
        self.watcher = Watcher(self.selector, self._close_in_child, rules)
        self._open_files.add(self.watcher.close, self.watcher.close_files)

    def _connect_parts(self, rules: Rules, *, strict: bool) -> None:
        """Make the objects that need the earlier ones."""
        messages.count_dropped(self._count_dropped)
        self.channel.count_dropped = self._count_dropped
        self.upkeep = Upkeep(self.state_dir, self.control, self.overrides, self.admin, self.checker)
        self.disabled = Disabled(self._publish)
        self.dates = FileDates(self._publish)
        renewals = Renewals(
            self.generations, self.fleet.workers, self.watcher, self._publish_soon, rules
        )
        self.status = Status(
            self._config_path,
            self.fleet,
            self.admin,
            self.checker,
            self.overrides,
            self.disabled,
            self.dates,
            self.watcher,
            renewals.pending,
            self.scoreboards,
        )
        self.control.child_named = self.status.child_name
        self.announcer = Announcer(self.status, self.state_dir, self.notifier)
        preparer = Preparer(
            self._config_path,
            self.generations,
            self.scoreboards,
            self.selector,
            self._close_in_child,
            strict=strict,
        )
        self._open_files.add(None, preparer.close_files)
        switchover = Switchover(
            self.fleet, self.admin, self.overrides, self.scoreboards, self._publish
        )
        self.reloads = Reloads(
            self.fleet, preparer, switchover, self.announcer, self.disabled, renewals, rules
        )
        kicks = Kicks(self.fleet.workers, self.updates)
        self.operator = OperatorSignals(
            self.fleet, self.announcer, self.reloads, self.upkeep, self.checker
        )
        self.commands = Commands(
            self.overrides, self.status, self.reloads, kicks, self.checker, self.operator.end
        )

    def _close_in_child(self) -> None:
        """In a child other than a worker: close the files of supervisor and workers."""
        self.generations.close_files()
        self._open_files.close_in_child()

    def _count_dropped(self, count: int) -> None:
        """Count log messages that could not be written."""
        self.scoreboards.count("relay_messages_dropped_total", count)

    def _publish(self) -> None:
        self.status.publish()

    def _publish_soon(self) -> None:
        self.status.publish_soon()

    def close(self) -> None:
        """Close everything, last opened first."""
        self._open_files.close()

    # The loop.

    def run(self) -> int:
        """Run until the relay was told to end and every worker has ended."""
        serving = self.generations.serving
        self._publish()
        log.info("%s", describe(serving.config.log.access))
        log.info(
            "relay %s starts %d workers",
            relay.__version__,
            serving.slots,
            extra={"config": str(self._config_path), "generation": 1},
        )
        # Workers share the memory that exists now. The collector would write to it.
        gc.collect()
        gc.freeze()
        while not self.fleet.ended:
            self._turn(time.monotonic())
            for key, events in self.selector.select(self._timeout_s()):
                key.data(events)
        self.reloads.abandon("all workers have ended")
        self._answer_last_clients()
        log.info("all workers have ended")
        return 0

    def _answer_last_clients(self) -> None:
        """Answer clients of the control socket that connected before the end."""
        for _ in ("accept", "read the request", "send the reply"):
            for key, events in self.selector.select(0):
                key.data(events)

    def _timeout_s(self) -> float:
        """How long the loop may wait for an event."""
        if self.reloads.eager or self.disabled.has_messages:
            return 0
        if self.fleet.transition_pending or self.reloads.handing_over or self.reloads.renewing:
            return TRANSITION_S
        due_at = min(
            self._beat_at + BEAT_S,
            self.notifier.watchdog_at,
            self.fleet.next_start_at,
            self.channel.resume_at,
            self.commands.kicks.due_at,
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
            self.scoreboards.beat()
        self.notifier.watchdog(now)
        self.commands.kicks.step(now)
        decision = self.fleet.step(now)
        if decision is not None:
            self.reloads.decided(now, decision)
        self.reloads.step(now)
        if self.fleet.ending is Shutdown.NO:
            self._keep_up(now, self.generations.serving)
        elif self.fleet.ending is Shutdown.DRAIN:
            self.watcher.step(now, self.generations.serving)
        self.overrides.step(time.time())
        self.scoreboards.step()
        self.status.step(time.monotonic())
        self.channel.step(now)
        if not self.reloads.handing_over:
            self.announcer.announce()
        self.control.expire(now)
        reap_orphans()

    def _keep_up(self, now: float, serving: Prepared) -> None:
        """What is done until the relay is told to end."""
        self.admin.step(now, serving, self.scoreboards, self.lifeline_fd, self.channel)
        self.checker.step(now, serving)
        self.watcher.step(now, serving)
        self.upkeep.step(now, serving.identity)
        scoreboard = self.scoreboards.generation(self.generations.number)
        self.disabled.step(now, time.time(), serving, scoreboard)
        self.dates.step(now, time.time(), serving)

    # Events.

    def _on_signals(self) -> None:
        self.operator.take(self.signals.read())

    def _on_command(self, request: dict[str, Any], client: Client) -> None:
        self.commands.carry_out(request, client)

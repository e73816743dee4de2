"""Everything that lives as long as the relay does, opened and connected.

Never: does anything with it (the loop of `relay.supervisor.supervisor` does).
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from relay.core.fleet_view import Rules
from relay.errors import StartupError
from relay.logs import messages
from relay.supervisor import passed_sockets
from relay.supervisor.admin_channel import AdminChannel
from relay.supervisor.admin_process import AdminProcess
from relay.supervisor.announcer import Announcer
from relay.supervisor.arrival import Arrival, taken_kicks, taken_sockets
from relay.supervisor.canary import Canary
from relay.supervisor.checker_process import CheckerProcess, open_health_file
from relay.supervisor.commands import Commands
from relay.supervisor.control import Client, ControlServer
from relay.supervisor.control_client import control_path
from relay.supervisor.disabled import Disabled
from relay.supervisor.ending import Ending
from relay.supervisor.fd_store import FdStore
from relay.supervisor.file_dates import FileDates
from relay.supervisor.fleet import Fleet
from relay.supervisor.generations import Generations
from relay.supervisor.handover import State, release_signals
from relay.supervisor.inspection import Inspection, PrepareRequest
from relay.supervisor.kicks import Kicks
from relay.supervisor.open_files import OpenFiles
from relay.supervisor.operator_signals import OperatorSignals
from relay.supervisor.override_store import OverrideStore
from relay.supervisor.prepare import finish
from relay.supervisor.prepared import Prepared, begin_scoreboard, configured_rules
from relay.supervisor.preparer import Preparer
from relay.supervisor.process import raise_file_limit
from relay.supervisor.reload import Reloads
from relay.supervisor.renewals import Renewals
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.signals import SignalPipe
from relay.supervisor.state_dir import StateDir
from relay.supervisor.status import RelayState, Status
from relay.supervisor.switchover import Switchover
from relay.supervisor.systemd import Notifier
from relay.supervisor.takeover import Takeover
from relay.supervisor.unix_sockets import open_control
from relay.supervisor.updates import Updates
from relay.supervisor.upkeep import Upkeep
from relay.supervisor.watcher import Watcher
from relay.supervisor.workers import Workers
from relay.worker.main import WorkerSpec

LEAVING_S = 5.0

Work = Callable[[WorkerSpec], int | None]
Opened = TypeVar("Opened")


class Parts:
    """The parts of one supervisor. Raises ConfigError and StartupError."""

    def __init__(
        self,
        config_path: Path,
        work: Work,
        rules: Rules | None,
        *,
        strict: bool = False,
        taken: State | None = None,
        inspected: Inspection | None = None,
    ) -> None:
        """Open everything. For `taken` and `inspected` see `relay.supervisor.main`."""
        self.config_path = config_path
        self.takeover: Takeover | None = None
        self.arrival: Arrival | None = None
        self.upgrade: Callable[[Client | None], None] = lambda _client: None
        self._taken = taken
        self.open_files = OpenFiles()
        try:
            number = 1 if taken is None else taken["generation"] + 1
            request = PrepareRequest(config_path, strict=strict)
            prepared = finish(request, number, inspected=inspected)
            rules = rules or configured_rules(Rules(), prepared.config.relay)
            self._open(prepared, rules)
            self._start_children(prepared, work, rules)
            self._connect(rules, strict=strict)
            if taken is not None:
                self._take_over(taken, rules)
        except BaseException:
            self.close()
            raise

    def _open(self, prepared: Prepared, rules: Rules) -> None:
        """Open the state directory, the sockets and the shared memory."""
        config, opened, taken = prepared.config, self.open_files, self._taken
        path = config.relay.state_dir
        self.state_dir = StateDir(path, None if taken is None else taken["lock"])
        opened.add(self.state_dir.close, self.state_dir.close_files)
        raise_file_limit()
        self.notifier = Notifier()
        opened.add(self.notifier.close, self.notifier.close)
        if taken is None:
            passed = passed_sockets.receive()
            opened.add(passed.close)
            before = passed_sockets.adopt(passed, config)
            stored = frozenset(passed.stored)
        else:
            before, stored = taken_sockets(taken), frozenset(taken["stored"])
        self.store = FdStore(self.notifier, stored)
        sockets = self._patiently(
            lambda: before.extend(config, prepared.slots, all_slots=taken is None)
        )
        self.generations = Generations(prepared, sockets)
        if taken is not None:
            self.generations.keep(taken["serving"], before)
        opened.add(self.generations.close_files)
        # A pipe that is never written to. When the supervisor dies, its only write end
        # closes, and every child reads the end of file.
        ends: tuple[int, int] = os.pipe() if taken is None else taken["lifeline"]
        self.lifeline_fd, self.lifeline_end = ends
        opened.add(lambda: os.close(self.lifeline_fd))
        opened.add(lambda: os.close(self.lifeline_end), lambda: os.close(self.lifeline_end))
        self.admin = self._patiently(
            lambda: AdminProcess(
                config.admin, prepared.password, path, rules, taken["admin"] if taken else None
            )
        )
        opened.add(self.admin.close, self.admin.close_files)
        control = (
            open_control(control_path(path))
            if taken is None
            else socket.socket(fileno=taken["control"])
        )
        opened.add(lambda: self.state_dir.remove(control_path(path)))
        self.scoreboards = Scoreboards()
        opened.add(self.scoreboards.close_reader, self.scoreboards.close_files)
        if taken is not None:
            self.scoreboards.totals.take_over(taken["totals"])
        begin_scoreboard(self.scoreboards, prepared)
        self.signals = SignalPipe()
        opened.add(self.signals.close, self.signals.close_files)
        # poll, not epoll: an epoll descriptor would be shared with every child.
        self.selector = selectors.PollSelector()
        self.overrides = OverrideStore(path, self.scoreboards, config, self._publish)
        self.channel = AdminChannel(self.selector, self.overrides.answer)
        opened.add(self.channel.close, self.channel.close_files)
        self.control = ControlServer(control, self.selector)
        # A client that waits for the end may then start the next relay at once.
        opened.add_last_closed(self.control.close, self.control.close_files)

    def _patiently(self, open_sockets: Callable[[], Opened]) -> Opened:
        """Open sockets. After a supervisor was killed, its workers may still have them.

        They see its end at once, but may be in the middle of something.
        """
        until_at = time.monotonic() + (LEAVING_S if self.state_dir.was_killed else 0)
        while True:
            try:
                return open_sockets()
            except StartupError:
                if time.monotonic() >= until_at:
                    raise
            time.sleep(0.02)

    def _start_children(self, prepared: Prepared, work: Work, rules: Rules) -> None:
        """Make the objects that keep the children running; the loop starts these."""
        self.updates = Updates()
        self.open_files.add(self.updates.close_files, self.updates.close_files)
        close_in_child = self.open_files.close_in_child
        workers = Workers(self.scoreboards, self.lifeline_fd, work, close_in_child, self.updates)
        self.fleet = Fleet(workers, self.generations, rules)
        self.open_files.add(self.fleet.close)
        self.checker = CheckerProcess(
            self.scoreboards,
            self.lifeline_fd,
            health_file=open_health_file(self.state_dir.path, prepared.identity),
            close_in_child=self._close_in_child,
            rules=rules,
            updates=self.updates,
        )
        self.open_files.add(self.checker.close)
        self.watcher = Watcher(self.selector, self._close_in_child, rules)
        self.open_files.add(self.watcher.close, self.watcher.close_files)

    def _connect(self, rules: Rules, *, strict: bool) -> None:
        """Make the objects that need the earlier ones."""
        messages.count_dropped(self._count_dropped)
        self.channel.count_dropped = self._count_dropped
        self.upkeep = Upkeep(self.state_dir, self.control, self.overrides, self.admin, self.checker)
        self.disabled = Disabled(self._publish)
        self.dates = FileDates(self._publish)
        renewals = Renewals(
            self.generations, self.fleet.workers, self.watcher, self._publish_soon, rules
        )
        canary = Canary(self.fleet)
        self.status = Status(
            self.config_path,
            self.fleet,
            self.admin,
            self.checker,
            self.overrides,
            self.disabled,
            self.dates,
            self.watcher,
            renewals.pending,
            self.scoreboards,
            canary,
        )
        self.control.child_named = self.status.child_name
        self.announcer = Announcer(self.status, self.state_dir, self.notifier, self.store)
        preparer = Preparer(
            self.config_path,
            self.generations,
            self.scoreboards,
            self.selector,
            self._close_in_child,
            strict=strict,
        )
        self.open_files.add(None, preparer.close_files)
        switchover = Switchover(
            self.fleet, self.admin, self.overrides, self.scoreboards, self._publish, rules
        )
        self.reloads = Reloads(
            self.fleet, preparer, switchover, self.announcer, self.disabled, renewals, canary, rules
        )
        kicks = Kicks(self.fleet.workers, self.updates)
        self.ending = Ending(self.fleet, self.announcer, self.reloads)
        self.operator = OperatorSignals(
            self.fleet,
            self.ending,
            self.reloads,
            self.upkeep,
            self.checker,
            self._upgrade,
        )
        self.commands = Commands(
            self.overrides,
            self.status,
            self.reloads,
            kicks,
            self.checker,
            canary,
            self.ending.stop_by_command,
            self._upgrade,
        )
        self.control.on_command = self.commands.carry_out
        if self._taken is not None:
            release_signals()
        self.selector.register(
            self.signals, selectors.EVENT_READ, lambda _: self.operator.take(self.signals.read())
        )

    def _upgrade(self, client: Client | None) -> None:
        self.upgrade(client)

    def _take_over(self, taken: State, rules: Rules) -> None:
        """Take over the processes and the clients of the version before an upgrade."""
        arrival = self.arrival = Arrival(taken, self.scoreboards)
        self.open_files.add(None, arrival.close_files)
        self.fleet.take(arrival.workers)
        if arrival.checker is not None:
            self.checker.take(*arrival.checker)
        self.updates.number = taken["updates"]
        self.commands.kicks.take(taken_kicks(taken))
        self.status.state = RelayState.SERVING
        self.status.started_at = taken["started_at"]
        self.status.upgraded = {"before": taken["version"], "at": time.time()}
        self.announcer.took_over = True
        self.takeover = Takeover(taken, self.fleet, self.admin, self.announcer, rules)
        self.takeover.take_clients(taken, self.control)

    def _close_in_child(self) -> None:
        """In a child other than a worker: close the files of supervisor and workers."""
        self.generations.close_files()
        self.open_files.close_in_child()

    def _count_dropped(self, count: int) -> None:
        """Count log messages that could not be written."""
        self.scoreboards.count("relay_messages_dropped_total", count)

    def _publish(self) -> None:
        self.status.publish()

    def _publish_soon(self) -> None:
        self.status.publish_soon()

    def close(self) -> None:
        """Close everything, last opened first."""
        self.open_files.close()

"""The supervisor: starts the relay, and then one loop over signals, the control socket and the clock until it ends.

Never: accepts a client's connection, reads its bytes, or runs a second thread.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import relay
from relay.config.load import load_config
from relay.core.fleet_plan import Rules, Shutdown
from relay.errors import FatalError, RelayError
from relay.logs import messages
from relay.sandbox.confinement import describe, hide_memory
from relay.supervisor.admin_channel import COMMANDS as BACKEND_COMMANDS
from relay.supervisor.admin_channel import AdminChannel
from relay.supervisor.admin_process import AdminProcess
from relay.supervisor.checker_process import CheckerProcess, open_health_file
from relay.supervisor.control import Client, ControlServer
from relay.supervisor.control_client import control_path
from relay.supervisor.disabled import Disabled
from relay.supervisor.fleet import Fleet
from relay.supervisor.inspection import PrepareRequest
from relay.supervisor.override_store import OverrideStore
from relay.supervisor.prepare import finish
from relay.supervisor.prepared import begin_scoreboard
from relay.supervisor.process import reap_strangers, take_all_files
from relay.supervisor.reload import Reloads
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.signals import EarlySignals, SignalPipe
from relay.supervisor.slot_sockets import SlotSockets
from relay.supervisor.state_dir import StateDir
from relay.supervisor.status import child_named, facts_of, status_reply
from relay.supervisor.systemd import Notifier
from relay.supervisor.unix_sockets import open_control
from relay.supervisor.upkeep import Upkeep
from relay.supervisor.workers import Workers
from relay.worker.main import WorkerSpec, run_worker

BEAT_S = 1.0
RESTLESS_S = 0.02  # how often to look at the scoreboard while something is about to change there
STALLED_S = 5.0

Work = Callable[[WorkerSpec], int | None]

log = logging.getLogger(__name__)


def run(
    config_path: Path, work: Work = run_worker, rules: Rules | None = None, *, strict: bool = False
) -> int:
    """Run the relay in the foreground until it is told to end; 0 then. `work` is what a forked worker does, `rules` the supervisor's patience.

    Raises ConfigError and StartupError, before a connection was accepted; then nothing of it is left.
    """
    hide_memory()
    early = EarlySignals()
    messages.setup(load_config(config_path).log.level, process="supervisor")
    supervisor = Supervisor(config_path, work, rules, strict=strict)
    try:
        if early.hung_up:
            supervisor.reloads.begin(None)
        return supervisor.run()
    except (RelayError, OSError, MemoryError) as error:
        if not supervisor.served:
            raise
        log.critical(
            "the supervisor cannot go on; its workers let their sessions finish", exc_info=True
        )
        raise FatalError(
            f"the relay served and cannot go on: {error or type(error).__name__}"
        ) from error
    finally:
        supervisor.close()
        messages.last_flush()


class Supervisor:
    """Everything that lives as long as the relay does. What changes with the generation is in `Fleet`."""

    def __init__(
        self, config_path: Path, work: Work, rules: Rules | None, *, strict: bool = False
    ) -> None:
        self.config_path = config_path
        self.strict = strict
        self._closers: list[Callable[[], object]] = []
        self._in_child: list[Callable[[], object]] = []
        try:
            self._open(work, rules)
        except BaseException:
            self.close()
            raise

    def _open(self, work: Work, rules: Rules | None) -> None:
        prepared = finish(PrepareRequest(self.config_path, strict=self.strict))
        config = prepared.config
        state_dir = config.relay.state_dir
        rules = rules or Rules(
            drain_timeout_s=config.relay.drain_timeout_s,
            old_generations=config.relay.old_generations,
        )
        self.state = StateDir(state_dir)
        self._own(self.state.close, self.state.close_files)
        take_all_files()
        self.notifier = Notifier()
        self._own(self.notifier.close, self.notifier.close)
        sockets = SlotSockets().extend(config, prepared.slots)
        self._own(sockets.close_all_but)
        # The only write end of a pipe nobody writes to: when we die, however, every child reads its end.
        self.lifeline_fd, lifeline_end = os.pipe()
        self._own(lambda: os.close(self.lifeline_fd))
        self._own(lambda: os.close(lifeline_end), lambda: os.close(lifeline_end))
        self.admin = AdminProcess(config.admin, prepared.password, state_dir, rules)
        self._own(self.admin.close, self.admin.close_files)
        control = open_control(control_path(state_dir))
        self._own(lambda: self.state.remove(control_path(state_dir)))
        self.scoreboards = Scoreboards()
        self._own(self.scoreboards.close_reader, self.scoreboards.close_files)
        begin_scoreboard(self.scoreboards, prepared)
        self.signals = SignalPipe()
        self._own(self.signals.close, self.signals.close_files)
        # poll, not epoll: an epoll descriptor would be shared with every child.
        self.selector = selectors.PollSelector()
        self.selector.register(
            self.signals, selectors.EVENT_READ, lambda _events: self._on_signals()
        )
        self.overrides = OverrideStore(state_dir, self.scoreboards, config, self.publish)
        self.channel = AdminChannel(self.selector, self.overrides.answer)
        self._own(self.channel.close, self.channel.close_files)
        self.control = ControlServer(
            control, self.selector, self._on_command, lambda pid: child_named(self, pid)
        )
        # Closed last of all: a client that waits for our end may start the next relay the moment we hang up.
        self._closers.insert(0, self.control.close)
        self._in_child.append(self.control.close_files)

        crew = Workers(self.scoreboards, self.lifeline_fd, work, self._let_go)
        messages.count_dropped(crew.count_dropped)
        self.channel.count_dropped = crew.count_dropped
        self.fleet = Fleet(crew, prepared, sockets, rules)
        self._own(self.fleet.close)
        health_file = open_health_file(state_dir, prepared.identity)
        self.checker = CheckerProcess(
            self.scoreboards,
            self.lifeline_fd,
            health_file=health_file,
            let_go=self.let_go_of_all,
            rules=rules,
        )
        self._own(self.checker.close)
        self.upkeep = Upkeep(self.state, self.control, self.overrides, self.admin, self.checker)
        self.disabled = Disabled(self.publish, rules.recheck_s)
        self.reloads = Reloads(self, rules.handover_s, rules.recheck_s)
        self._in_child.append(self.reloads.close_files)
        self.started_at = time.time()
        self.state_word = "starting"
        self._announced: tuple[object, ...] = ()
        self._ticked_at = time.monotonic()
        self._beat_at = 0.0

    def _own(
        self, close: Callable[[], object], in_child: Callable[[], object] | None = None
    ) -> None:
        self._closers.append(close)
        if in_child is not None:
            self._in_child.append(in_child)

    def let_go_of_all(self) -> None:
        """Close every file that only the supervisor or a worker needs: what their siblings do."""
        self.fleet.close_files()
        self._let_go()

    def _let_go(self) -> None:
        for close in self._in_child:
            close()

    @property
    def served(self) -> bool:
        """Whether clients could connect at any time: an end after that is not a failed start."""
        return bool(self._announced)

    def close(self) -> None:
        """Undo everything, last opened first."""
        while self._closers:
            self._closers.pop()()

    # The loop.

    def run(self) -> int:
        """Until every worker has ended because it was told to."""
        self.publish()
        log.info("%s", describe(self.fleet.prepared.config.log.access))
        log.info(
            "relay %s starts %d workers",
            relay.__version__,
            self.fleet.prepared.slots,
            extra={"config": str(self.config_path), "generation": 1},
        )
        # What is here now is shared with the workers; keep the collector from writing into those pages.
        gc.collect()
        gc.freeze()
        while not self.fleet.ended:
            self._tick(time.monotonic())
            for key, events in self.selector.select(self._timeout_s()):
                key.data(events)
        log.info("all workers have ended")
        return 0

    def _timeout_s(self) -> float:
        now = time.monotonic()
        if self.reloads.eager or self.disabled.telling:
            return 0
        if self.fleet.transition_pending or self.reloads.handing_over:
            return RESTLESS_S
        return max(
            0.001,
            min(
                self._beat_at + BEAT_S,
                self.notifier.watchdog_at,
                self.fleet.next_start_at,
                self.channel.resume_at,
            )
            - now,
        )

    def _tick(self, now: float) -> None:
        if now - self._ticked_at > STALLED_S:
            self.fleet.excuse_heartbeats(
                now
            )  # it was us who did not run (a stopped machine, a debugger): the workers get a second to speak
        self._ticked_at = now
        messages.flush()
        if now - self._beat_at >= BEAT_S:
            self._beat_at = now
            self.scoreboards.beat()
        self.notifier.watchdog(now)
        outcome = self.fleet.step(now)
        if outcome is not None:
            self.reloads.finish(outcome)
        self.reloads.step(now)
        if self.fleet.ending is Shutdown.NO:
            self.admin.step(
                now, self.fleet.prepared, self.scoreboards, self.lifeline_fd, self.channel
            )
            self.checker.step(now, self.fleet.prepared)
            self.upkeep.step(now, self.fleet.prepared.identity)
            self.disabled.step(
                now,
                time.time(),
                self.fleet.prepared,
                self.scoreboards.generation(self.fleet.generation),
            )
        self.overrides.step(time.time())
        self.scoreboards.step()
        self.channel.step(now)
        self.announce()
        self.control.expire(now)
        reap_strangers()

    def announce(self) -> None:
        """Tell scripts and systemd who serves where: once all do, and again whenever that has changed."""
        if (
            self.fleet.ending is not Shutdown.NO
            or not self.fleet.complete
            or self.reloads.handing_over
        ):
            return
        now_true = (
            self.fleet.generation,
            tuple(self.fleet.serving_pids().items()),
            str(self.fleet.endpoints()),
            self.admin.address,
        )
        if now_true == self._announced:
            return
        first, self._announced = not self._announced, now_true
        if self.state_word != "serving":
            self.state_word = "serving"
            self.publish()
        endpoints = {
            "generation": self.fleet.generation,
            "supervisor": {"pid": os.getpid()},
            "workers": [
                {"slot": slot, "pid": pid}
                for slot, pid in sorted(self.fleet.serving_pids().items())
            ],
            "listeners": self.fleet.endpoints(),
            "admin": self.admin.address,
        }
        try:
            self.state.write_endpoints(endpoints)
        except OSError as error:
            log.error(
                "%s: cannot write endpoints.json: %s; scripts that read it see the state before",
                self.state.path,
                error.strerror or error,
            )
        self.notifier.ready(self.status_line())
        if first:
            log.info(
                "the relay accepts on %s",
                ", ".join(
                    f"{address} ({name})"
                    for name, all_ in self.fleet.endpoints().items()
                    for address in all_
                ),
                extra=endpoints,
            )

    def status_line(self) -> str:
        """One line for `systemctl status`."""
        return f"generation {self.fleet.generation}, {len(self.fleet.serving_pids())} of {self.fleet.prepared.slots} workers serve"

    def publish(self) -> None:
        """Tell the scraper which counters there are, and what it cannot count."""
        self.scoreboards.publish(facts_of(self), self.fleet.prepared.description)

    # Events.

    def _on_signals(self) -> None:
        for number in self.signals.read():
            if number is signal.SIGHUP:
                self.upkeep.look(self.fleet.prepared.identity)
                self.reloads.begin(None)
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._end(
                    Shutdown.DRAIN if self.fleet.ending is Shutdown.NO else Shutdown.NOW,
                    number.name,
                )
            elif number is signal.SIGQUIT:
                self._end(Shutdown.NOW, number.name)
            elif number is signal.SIGUSR1:
                self.fleet.crew.tell_all(signal.SIGUSR1)
            # SIGCHLD only had to wake us: every turn reaps.

    def _on_command(self, request: dict[str, Any], client: Client) -> None:
        command = request["command"]
        if command in BACKEND_COMMANDS:
            client.reply(self.overrides.answer(request))
        elif command == "status":
            client.reply(status_reply(self))
        elif command == "reload":
            self.reloads.begin(client)
        else:
            # The client may wait for our end, which hangs up on it.
            client.reply({"ok": True, "supervisor": {"pid": os.getpid()}}, hold=True)
            self._end(Shutdown.DRAIN if command == "drain" else Shutdown.NOW, f"relay {command}")

    def _end(self, ending: Shutdown, why: str) -> None:
        if self.fleet.ending in (ending, Shutdown.NOW):
            return
        log.info(
            "%s: %s", why, "draining, then stopping" if ending is Shutdown.DRAIN else "stopping now"
        )
        self.state_word = "draining"
        self.publish()
        self.notifier.stopping("draining" if ending is Shutdown.DRAIN else "stopping")
        self.state.remove_endpoints()
        self.fleet.end(ending)
        self.reloads.abandon(why)

"""`relay upgrade`: replaces the program by the one that is installed now.

    waiting      for a reload or a kick that is under way
    trying       a child runs the new program, which checks whether it can take over
    leaving      this process executes the new program

After that, the new program does the rest: `relay.supervisor.takeover`. The process
keeps its pid, its children, and every descriptor that `relay.supervisor.departure`
names.

Never: leaves before the new program has said that it can take over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import selectors
import signal
import time

import relay
from relay.logs import messages
from relay.shared.replies import FailureReply
from relay.supervisor import departure, handover, kept_inspection
from relay.supervisor.control import Client
from relay.supervisor.parts import Parts
from relay.supervisor.process import (
    EXIT_CANNOT_START,
    EXIT_CONFIG,
    own_command,
    reap,
    send,
    start_program,
)

PATIENCE_S = 120.0
OUTPUT_BYTES = 65536
LINES = 20

log = logging.getLogger(__name__)


class Upgrades:
    """One upgrade at a time; every request that comes meanwhile gets its answer."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._clients: list[Client] = []
        self._requested = False
        self._pid: int | None = None
        self._pipe_fd = self._memory_fd = -1
        self._output = bytearray()
        self._ended = False
        self._until_at = math.inf

    @property
    def under_way(self) -> bool:
        """Whether a new program is tried: no reload may begin."""
        return self._pid is not None

    def request(self, client: Client | None) -> None:
        """Upgrade for a client, which is answered later, or for SIGUSR2 (None)."""
        if client is not None:
            self._clients.append(client)
        if self._parts.announcer.refusal:
            self._refuse(self._parts.announcer.refusal)
            return
        self._requested = True

    def step(self, now: float) -> None:
        """Go on with what is under way."""
        if self._parts.ending.begun:
            if self._requested or self._pid is not None:
                self.close()
                self._refuse("the relay was told to end")
            return
        if self._pid is not None:
            self._watch(now)
        elif self._requested and self._may_try:
            self._try(now)

    @property
    def _may_try(self) -> bool:
        parts = self._parts
        return (
            parts.announcer.announced
            and parts.takeover is None
            and not parts.reloads.busy
            and not parts.commands.kicks.busy
        )

    # Trying.

    def _try(self, now: float) -> None:
        self._requested = False
        self._output.clear()
        self._ended = False
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_fd, True)
        memory = None
        try:
            self._memory_fd = kept_inspection.make_memory()
            state = {**departure.describe(self._parts, ()), kept_inspection.KEY: self._memory_fd}
            memory, value = handover.write(state, "try")
            environment = {**os.environ, handover.VARIABLE: value}
            kept = (memory.fd, self._memory_fd)
            self._pid = start_program(own_command(), environment, write_fd, kept)
        except OSError as error:
            os.close(read_fd)
            self._close_memory()
            self._refuse(f"the new program cannot be tried: {error.strerror or error}")
            return
        finally:
            os.close(write_fd)
            if memory is not None:
                memory.close()
        log.info("the program that is installed now is tried", extra={"upgrade_pid": self._pid})
        self._pipe_fd, self._until_at = read_fd, now + PATIENCE_S
        self._parts.selector.register(read_fd, selectors.EVENT_READ, lambda _: self._read())

    def _read(self) -> None:
        try:
            data = os.read(self._pipe_fd, OUTPUT_BYTES)
        except BlockingIOError:
            return
        if data:
            self._output = (self._output + data)[-OUTPUT_BYTES:]
        else:
            self._close_pipe()
            self._ended = True

    def _watch(self, now: float) -> None:
        assert self._pid is not None  # noqa: S101  for mypy
        status = reap(self._pid) if self._ended or now >= self._until_at else None
        if status is None and now < self._until_at:
            return
        if status is None:
            self.close()
            self._refuse(f"the new program did not answer within {PATIENCE_S:g} s")
            return
        self._pid = None
        *lines, last = self._output.decode(errors="replace").split("\n")[-LINES - 1 : -1] or [""]
        version = _version(last) if status.status == 0 else None
        if version is not None:
            self._leave(version)
            return
        code = os.waitstatus_to_exitcode(status.status)
        self._refuse(
            f"the program that is installed now cannot take over: it {status};"
            f" relay {relay.__version__} goes on",
            # `relay.cli.output.say` puts the program's name before each line.
            [line.removeprefix("relay: ") for line in (*lines, last) if line.strip()],
            code if code in {EXIT_CONFIG, EXIT_CANNOT_START} else EXIT_CANNOT_START,
        )

    def _refuse(self, why: str, lines: list[str] | None = None, code: int = 0) -> None:
        self._close_memory()
        for line in lines or ():
            log.error("upgrade refused: %s", line)
        log.error("upgrade refused: %s", why)
        reply: FailureReply = {"ok": False, "code": code or EXIT_CANNOT_START, "error": why}
        if lines:
            reply["problems"] = lines
        self._requested = False
        clients, self._clients = self._clients, []
        for client in clients:
            client.reply(reply)

    def _close_pipe(self) -> None:
        if self._pipe_fd >= 0:
            self._parts.selector.unregister(self._pipe_fd)
            os.close(self._pipe_fd)
            self._pipe_fd = -1

    def _close_memory(self) -> None:
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def close_files(self) -> None:
        """Close the pipe and the memory in a forked child."""
        if self._pipe_fd >= 0:
            os.close(self._pipe_fd)
        if self._memory_fd >= 0:
            os.close(self._memory_fd)

    def close(self) -> None:
        """End the new program's try."""
        self._close_pipe()
        self._close_memory()
        if self._pid is not None:
            send(self._pid, signal.SIGKILL)
            deadline = time.monotonic() + 1
            while reap(self._pid) is None and time.monotonic() < deadline:
                time.sleep(0.002)
            self._pid = None

    # Leaving.

    def _leave(self, version: str) -> None:
        """Execute the new program. Returns only if that fails."""
        parts = self._parts
        log.info("relay %s is replaced by relay %s", relay.__version__, version)
        parts.announcer.reload_begins()
        limit_s = parts.generations.serving.config.relay.reload_drain_s
        until_at = time.monotonic() + limit_s if limit_s else math.inf
        parts.fleet.workers.limit_serving(parts.generations.number, until_at)
        parts.watcher.close()
        waiting = parts.reloads.take_waiting()
        self._clients += waiting
        if waiting:  # they want files read that may be newer than the check
            self._close_memory()
        clients = [(client, True) for client in self._clients]
        clients += [(client, False) for client in parts.control.new_clients]
        mask = handover.hold_signals()
        inherited: list[int] = []
        try:
            state = departure.describe(parts, clients)
            if self._memory_fd >= 0:
                state[kept_inspection.KEY] = self._memory_fd
            memory, value = handover.write(state, "take")
            inherited = [memory.fd, *handover.descriptors(state)]
            for descriptor in inherited:
                os.set_inheritable(descriptor, True)
            environment = {
                **os.environ,
                **{name: text for name, text in parts.notifier.environment.items() if text},
                handover.VARIABLE: value,
            }
            messages.last_flush()
            command = own_command()
            os.execve(command[0], command, environment)  # noqa: S606  no shell is wanted
        except OSError as error:
            for descriptor in inherited:
                with contextlib.suppress(OSError):
                    os.set_inheritable(descriptor, False)
            parts.fleet.workers.limit_serving(parts.generations.number, 0)
            why = f"the new program cannot be executed: {error.strerror or error}"
            parts.announcer.reload_is_over(succeeded=False, why=why)
            self._refuse(why)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _version(line: str) -> str | None:
    """The version of a program that can take over, from the last line that it wrote."""
    try:
        found = json.loads(line)
        if found["handover"] == handover.FORMAT:
            return str(found["version"])
    except (ValueError, KeyError, TypeError):
        pass
    return None

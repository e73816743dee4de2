"""Prepares a generation until its workers can be forked, without blocking the loop.

A child process reads and checks everything (`relay.supervisor.inspection`), and sends
what it found over a pipe. TLS contexts cannot be sent, and workers inherit them from
the supervisor. So they are built here, in steps of a few milliseconds, from the bytes
that the child has checked.

If the child hangs or dies, the request is refused with a reason.

Never: reads a file, looks a name up, or waits (except `finish`, before the loop runs).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from relay.errors import ConfigError, StartupError
from relay.steps import at_once
from relay.supervisor.building import in_steps
from relay.supervisor.inspection import Inspection, PrepareRequest, Refusal, inspect_to_bytes
from relay.supervisor.prepared import Prepared
from relay.supervisor.process import ExitStatus, reap, send, start_preparer
from relay.supervisor.renewal_check import Renewed

PATIENCE_S = 120.0
TURN_S = 0.005  # what one turn of the supervisor's loop may spend on building
_READ_BYTES = 1 << 20
_END_PATIENCE_S = 1.0


@dataclass(slots=True)
class _Child:
    """The child process until it is reaped."""

    pid: int
    kill_at: float = float("inf")


class AbandonedChildren:
    """Children whose answer is no longer needed; they are killed and reaped.

    A child that hangs in the kernel, for example on a file system that does not answer,
    cannot be killed. Nothing waits for it.
    """

    def __init__(self) -> None:
        self._children: list[_Child] = []

    def take(self, child: _Child) -> None:
        """Kill it at its `kill_at`, and reap it."""
        self._children.append(child)

    def step(self, now: float) -> None:
        """Reap children that have ended; kill those that are due."""
        for child in list(self._children):
            if reap(child.pid) is not None:
                self._children.remove(child)
            elif now >= child.kill_at:
                child.kill_at = float("inf")
                send(child.pid, signal.SIGKILL)

    def wait(self, patience_s: float) -> None:
        """Wait for all to end, at most this long."""
        until = time.monotonic() + patience_s
        while self._children and time.monotonic() < until:
            self.step(time.monotonic())
            time.sleep(0.002)


class Preparation:
    """One request until it is a `Prepared`. Call `step` when `fd` is readable.

    Raises StartupError if the child cannot be started.
    """

    def __init__(
        self,
        request: PrepareRequest,
        number: int,
        abandoned: AbandonedChildren,
        close_in_child: Callable[[], None] = lambda: None,
        *,
        work: Callable[[PrepareRequest], bytes] = inspect_to_bytes,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._number = number
        self._abandoned = abandoned
        self._patience_s = patience_s
        self._received = bytearray()
        self._steps: Generator[None, None, Prepared] | None = None
        self._renewed: Renewed | None = None
        self._ended: ExitStatus | None = None
        self.fd, write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)

        def send_answer() -> None:
            with contextlib.suppress(OSError):  # `close_in_child` may have closed it
                os.close(self.fd)
            with os.fdopen(write_fd, "wb") as pipe:
                pipe.write(work(request))

        try:
            self._child: _Child | None = _Child(start_preparer(close_in_child, send_answer))
        except OSError as error:
            os.close(self.fd)
            what = f"cannot start a process that reads the configuration: {error.strerror}"
            hint = "raise TasksMax or the memory limit of the relay, and try again"
            raise StartupError(what, hint) from None
        finally:
            os.close(write_fd)
        self._deadline_at = time.monotonic() + patience_s

    @property
    def building(self) -> bool:
        """Whether it can go on, so that `step` must be called at once."""
        return self._steps is not None or self._renewed is not None

    def step(self, now: float, turn_s: float = TURN_S) -> Prepared | Renewed | None:
        """Go on for about `turn_s`; None until it is done.

        Raises ConfigError and StartupError; then it is over.
        """
        if self._renewed is not None:
            return self._renewed
        if self._steps is None:
            # To unpickle the answer of hundreds of routes is a turn's work by itself.
            self._receive(now)
            return None
        until = time.monotonic() + turn_s
        while time.monotonic() < until:
            try:
                next(self._steps)
            except StopIteration as done:
                prepared: Prepared = done.value
                return prepared
        return None

    def _receive(self, now: float) -> None:
        """Read from the child, and decode its answer when it is complete.

        Raises what `step` raises.
        """
        try:
            while data := os.read(self.fd, _READ_BYTES):
                self._received += data
        except BlockingIOError:
            if now >= self._deadline_at:
                raise self._too_slow() from None
            return
        if not self._received and self._is_ending(now):
            return
        found = self._decode()
        if isinstance(found, Refusal):
            if found.problems:
                raise ConfigError(found.problems)
            raise StartupError(found.what, found.hint)
        if isinstance(found, Renewed):
            self._renewed = found
        else:
            self._steps = in_steps(found, self._number)

    def _is_ending(self, now: float) -> bool:
        """Whether the child closed its pipe without an answer and may still run."""
        if self._child is None or self._ended is not None:
            return False
        self._deadline_at = min(self._deadline_at, now + _END_PATIENCE_S)
        self._ended = reap(self._child.pid)
        if self._ended is not None:
            self._child = None
        return self._ended is None and now < self._deadline_at

    def _decode(self) -> Inspection | Renewed | Refusal:
        """The child's answer. Raises StartupError if there is none."""
        ended = self._ended or self._reap()
        if not self._received:
            why = f"{ended}" if ended is not None else "closed its pipe"
            what = f"the process that checks the configuration {why} before it had an answer"
            hint = (
                "see its last messages in the log;"
                " if it was killed, the system's log has the reason"
            )
            raise StartupError(what, hint)
        try:
            found: Inspection | Renewed | Refusal
            found = pickle.loads(self._received)  # noqa: S301  its own child
        except (EOFError, pickle.UnpicklingError):
            what = "the process that checks the configuration ended in the middle of its answer"
            raise StartupError(what, "see the system's log for what ended it") from None
        self._received.clear()
        return found

    def _reap(self) -> ExitStatus | None:
        """How the child ended; None if it has closed its pipe but not ended yet."""
        child, self._child = self._child, None
        if child is None:
            return None
        ended = reap(child.pid)
        if ended is None:
            child.kill_at = time.monotonic() + _END_PATIENCE_S
            self._abandoned.take(child)
        return ended

    def _too_slow(self) -> StartupError:
        """End the child. Returns the error to raise."""
        what = f"checking the configuration and its files took longer than {self._patience_s:g} s"
        hint = (
            "its process was ended, and the log has its traceback;"
            " check whether a file system hangs"
        )
        if self._child is not None:
            send(self._child.pid, signal.SIGABRT)
            self._child.kill_at = time.monotonic() + _END_PATIENCE_S
            self._abandoned.take(self._child)
            self._child = None
        return StartupError(what, hint)

    def close_files(self) -> None:
        """Close the pipe: in another forked child."""
        if self.fd >= 0:
            os.close(self.fd)

    def close(self) -> None:
        """End the child, and drop what is half built."""
        if self._child is not None:
            send(self._child.pid, signal.SIGKILL)
            self._abandoned.take(self._child)
            self._child = None
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def finish(
    request: PrepareRequest,
    number: int = 1,
    work: Callable[[PrepareRequest], bytes] = inspect_to_bytes,
    inspected: Inspection | None = None,
) -> Prepared:
    """Prepare the first generation of this process, before the loop runs.

    `work` is what the child does, as in `Preparation`. With `inspected`, which it has
    found before, there is no child. Raises ConfigError and StartupError.
    """
    if inspected is not None:
        return at_once(in_steps(inspected, number))
    abandoned = AbandonedChildren()
    preparation = Preparation(request, number, abandoned, work=work)
    poll = select.poll()
    poll.register(preparation.fd, select.POLLIN)
    try:
        while True:
            prepared = preparation.step(time.monotonic())
            if isinstance(prepared, Prepared):
                return prepared
            if not preparation.building:
                poll.poll(1000)
    finally:
        preparation.close()
        abandoned.wait(_END_PATIENCE_S)

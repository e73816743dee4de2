"""Signals as bytes on a socket, so that the supervisor's loop sees them as events.

Never: acts on a signal. A handler that does runs between any two lines of the
supervisor, like a second thread.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType

HANDLED = (
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)
# A new child ignores these until it has handlers. They are sent to whole process
# groups, or would end the child by default.
IGNORED_IN_CHILDREN = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def _ignore(number: int, frame: FrameType | None) -> None:
    # Python writes the number to the wakeup descriptor only if a handler exists.
    del number, frame


class EarlySignals:
    """SIGHUP, SIGUSR1 and SIGUSR2 before the loop runs; they end a process by default.

    SIGUSR1 and SIGUSR2 are ignored: no log is open, and nothing can be upgraded. SIGHUP
    is remembered, because files may have changed after they were read.
    """

    def __init__(self) -> None:
        self.hung_up = False
        signal.signal(signal.SIGHUP, self._on_hangup)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.hung_up = True


class SignalPipe:
    """The signals of this process, readable from a descriptor. Only one may exist."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._handlers_before = {number: signal.signal(number, _ignore) for number in HANDLED}
        # Signals beyond the buffer only repeat signals that are in it.
        self._wakeup_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)

    def fileno(self) -> int:
        """For the selector."""
        return self._read.fileno()

    def read(self) -> list[signal.Signals]:
        """The signals since the last call, in order, at most 4096."""
        try:
            return [signal.Signals(byte) for byte in self._read.recv(4096)]
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Restore the handlers that were set before."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self.close_files()

    def close_files(self) -> None:
        """Close the descriptors: in a forked child, which has no wakeup descriptor."""
        self._read.close()
        self._write.close()


def fork_with_signals_held(fork: Callable[[], int]) -> int:
    """Fork so that the child never runs a handler of the parent.

    Returns what `fork` returns.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    pid = 0
    try:
        pid = fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in HANDLED:
                signal.signal(
                    number, signal.SIG_IGN if number in IGNORED_IN_CHILDREN else signal.SIG_DFL
                )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid

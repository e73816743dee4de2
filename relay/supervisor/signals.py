"""Signals as bytes on a socket, so that the supervisor's loop sees them like any other event.

Never: acts on one. A handler that runs between any two lines of the supervisor would be a second thread.
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
    signal.SIGCHLD,
)
# What a fresh child ignores until it has its own handlers: the signals that reach a whole process group, or whose default would end it.
IGNORED_IN_CHILDREN = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)


def _note(number: int, frame: FrameType | None) -> None:
    # Python writes the number to the wakeup descriptor; a handler must exist for that.
    del number, frame


class EarlySignals:
    """HUP and USR1 before the loop runs; by default each would end the process.

    The logs that USR1 is about are not open yet. A HUP may mean files that were read already.
    """

    def __init__(self) -> None:
        self.hung_up = False
        signal.signal(signal.SIGHUP, self._on_hangup)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.hung_up = True


class SignalPipe:
    """The process's signals, readable from a file descriptor. One at a time."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._before = {number: signal.signal(number, _note) for number in HANDLED}
        # More signals than the buffer holds are repetitions of pending ones.
        self._wakeup_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)

    def fileno(self) -> int:
        """For the selector."""
        return self._read.fileno()

    def read(self) -> list[signal.Signals]:
        """The signals that came since the last call, in order, at most 4096."""
        try:
            return [signal.Signals(byte) for byte in self._read.recv(4096)]
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Put the handlers back as they were."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.close_files()

    def close_files(self) -> None:
        """Let go of the descriptors only: what a child does, after it has taken the wakeup descriptor out of use."""
        self._read.close()
        self._write.close()


def fork_with_signals_held(fork: Callable[[], int]) -> int:
    """Fork so that no signal is handled by the child with the parent's handlers. Returns what `fork` returns."""
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

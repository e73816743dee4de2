"""The channel on which a child of the supervisor gets changes while it runs.

An update is a number, some bytes, and further open files. The bytes are in sealed
memory, because they may be larger than a message, and may hold private keys: nothing is
written to a disk. Updates arrive in the order in which they were sent.

Never: blocks; knows what an update means.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from relay.shared.sealed_memory import SealedFile, read_all

MOST_FILES = 250  # of one message, with the bytes; the kernel allows 253
_MESSAGE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Update:
    """One update, as it was received. The receiver closes `files`."""

    number: int
    data: bytes
    files: tuple[int, ...] = ()


class UpdateSender:
    """The supervisor's end of the channel to one child.

    `child_end` is the other end, which the child inherits.
    """

    def __init__(self) -> None:
        self._socket, self.child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._unsent: deque[tuple[bytes, list[int]]] = deque()

    @classmethod
    def taken(cls, fd: int | None) -> UpdateSender:
        """The supervisor's end of a child that the program before has started.

        Without a descriptor the child gets nothing: it would not understand it.
        """
        sender = cls()
        sender.child_end.close()
        if fd is not None:
            sender._socket.close()
            sender._socket = socket.socket(fileno=fd)
            sender._socket.setblocking(False)
        return sender

    @property
    def fd(self) -> int:
        """The supervisor's end."""
        return self._socket.fileno()

    def send(self, number: int, data: SealedFile, files: Sequence[int] = ()) -> None:
        """Send an update, now or in a later `step`. The caller keeps the files."""
        every = [data.fd, *files]
        self.step()
        for at in range(0, len(every), MOST_FILES):
            portion = every[at : at + MOST_FILES]
            message = b"%d %d" % (number, len(every) - at - len(portion))
            if self._unsent or not self._try(message, portion):
                self._unsent.append((message, [os.dup(fd) for fd in portion]))

    @property
    def pending(self) -> bool:
        """Whether the child has not taken everything."""
        return bool(self._unsent)

    def step(self) -> None:
        """Send what the child did not take before."""
        while self._unsent and self._try(*self._unsent[0]):
            _close(self._unsent.popleft()[1])

    def _try(self, message: bytes, fds: Sequence[int]) -> bool:
        """False if the child has no room now; True if it has it, or has ended."""
        try:
            socket.send_fds(self._socket, [message], fds)
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:
            return True
        except OSError:  # too many descriptors in flight
            return False
        return True

    def close(self) -> None:
        """Close the supervisor's end: the child has ended, or this is another child."""
        while self._unsent:
            _close(self._unsent.popleft()[1])
        self._socket.close()

    def close_both(self) -> None:
        """Close both ends: the child could not be started."""
        self.child_end.close()
        self.close()


class UpdateReceiver:
    """A child's end of the channel. `ended` is set when the supervisor is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._received: list[int] = []  # the files of an update that is not complete
        self.ended = False

    @property
    def fd(self) -> int:
        """It is readable when an update has come."""
        return self._socket.fileno()

    def receive(self) -> list[Update]:
        """All updates that have come. Raises OSError if one came incomplete."""
        found = []
        while not self.ended:
            try:
                data, fds, flags, _ = socket.recv_fds(self._socket, _MESSAGE_BYTES, MOST_FILES)
            except BlockingIOError:
                break
            except ConnectionError:
                self.ended = True
                break
            if not data:
                self.ended = True
                break
            self._received += fds
            if not fds or flags & socket.MSG_CTRUNC:
                _close(self._received)
                self._received = []
                raise OSError("an update came without all its files: too many files are open")
            number, left = map(int, data.split())
            if left:
                continue
            (first, *others), self._received = self._received, []
            try:
                found.append(Update(number, read_all(first), tuple(others)))
            finally:
                os.close(first)
        return found

    def close(self) -> None:
        """Close the child's end."""
        _close(self._received)
        self._received = []
        self._socket.close()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)

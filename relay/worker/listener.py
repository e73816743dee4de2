"""Accepting: one `Acceptor` per listening socket of this worker's slot.

Accepted sockets inherit TCP_NODELAY and `relay.tcp_options` from the listening socket.
When the worker is full the socket is not watched: clients wait in the kernel's queue
instead of being turned away.

Never: reads a byte.
Next: `relay.worker.driver.start`
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

from relay.sockets import Address, StreamSocket, accept, accept_unix, inode_of
from relay.worker.listener_settings import Listener
from relay.worker.loop import ET, GONE, IN
from relay.worker.worker import Worker

# More than any backlog holds: new clients cannot keep us emptying the queue for ever.
MOST_QUEUED = 65_536
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Start = Callable[[Worker, Listener, StreamSocket, Address], None]

log = logging.getLogger(__name__)


class Acceptor:
    """One listening socket. `start` begins the session of an accepted client."""

    __slots__ = (
        "_accept",
        "_closed",
        "_family",
        "_left",
        "_listener",
        "_mask",
        "_sock",
        "_start",
        "_worker",
    )

    def __init__(
        self, worker: Worker, listener: Listener, sock: socket.socket, start: Start
    ) -> None:
        self._listener = listener
        self._start = start
        self._worker = worker
        self._sock = sock
        self._family = int(sock.family)
        self._left = self._closed = False
        self._accept = accept_unix if sock.family == socket.AF_UNIX else accept
        sock.setblocking(False)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._mask = IN
            worker.loop.add(sock.fileno(), IN, self.on_ready)
        else:
            # The supervisor makes it listen once this worker serves. Until then epoll
            # reports a hang-up: once if edge-triggered, without end if level-triggered.
            self._mask = IN | ET
            worker.loop.add(sock.fileno(), self._mask, self._on_first)

    def _on_first(self, mask: int) -> None:
        if not mask & GONE:
            fd = self._sock.fileno()
            self._worker.loop.watch(fd, self._mask, IN)
            self._worker.loop.handle(fd, self.on_ready)
            self._mask = IN

    def on_ready(self, mask: int) -> None:  # noqa: ARG002 (it is always IN)
        """Accept one client. If there are more, epoll reports the socket again.

        An accept on an empty queue would cost a system call and an exception each time.
        """
        worker = self._worker
        if not worker.admission.has_room():
            worker.admission.wait_for_room(self)
            return
        try:
            sock, address = self._accept(self._sock, self._family)
        except OSError as error:
            if error.errno in _NO_RESOURCES:
                log.warning(
                    "cannot accept on listener %s: %s; the worker waits until sessions end;"
                    " raise LimitNOFILE, or lower limits.connections",
                    self._listener.name,
                    error.strerror,
                )
                worker.admission.wait_for_room(self)
            return  # any other error means that this client is gone (accept(2))
        self._start(worker, self._listener, sock, address)

    def pause(self) -> None:
        """Leave clients in the kernel's queue."""
        self._worker.loop.watch(self._sock.fileno(), self._mask, 0)
        self._mask = 0

    def resume(self) -> None:
        """Accept again, unless the clients are left to another worker."""
        if not self._left:
            self._worker.loop.watch(self._sock.fileno(), self._mask, IN)
            self._mask = IN

    # For `relay.worker.accepting`.

    @property
    def inode(self) -> int:
        """Which socket it is; 0 after it was closed."""
        return 0 if self._closed else inode_of(self._sock)

    def leave(self) -> None:
        """Leave the clients to another worker, which has the same socket."""
        self._left = True
        self.pause()

    def take_back(self) -> None:
        """Accept again. If there is no room, the next client says so."""
        if self._left and not self._closed:
            self._left = False
            self.resume()

    def close(self) -> None:
        """Accept all clients in the kernel's queue, and stop listening in this process.

        The kernel has answered these clients' SYN, so they expect to be served. If no
        other process has the socket, clients that come between the last accept and the
        close are reset, so both happen at once. Call this between two batches of
        events, because the descriptor's number may be given to another socket.
        """
        self.pause()
        if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._empty_queue()
        self._closed = True
        self._sock.close()

    def _empty_queue(self) -> None:
        for _ in range(MOST_QUEUED):
            try:
                sock, address = self._accept(self._sock, self._family)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_RESOURCES:
                    log.warning(
                        "cannot accept all waiting clients of listener %s: %s; another process"
                        " that listens there serves the rest, or they are reset; raise"
                        " LimitNOFILE",
                        self._listener.name,
                        error.strerror,
                    )
                    return
                continue  # this client is gone, or its network (accept(2))
            self._start(self._worker, self._listener, sock, address)

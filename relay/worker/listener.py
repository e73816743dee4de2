"""Accepting: one `Acceptor` per listening socket of this worker's slot.

Accepted sockets inherit TCP_NODELAY and SO_KEEPALIVE from the listening socket. When the worker is full the socket is not
watched, so clients wait in the kernel's queue instead of being turned away.

Never: reads a byte.
Next: `relay.worker.session.Session.step`
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING

from relay.core.routes import RouteTable
from relay.errors import Reason, SessionError, Side
from relay.sockets import Address, StreamSocket, accept
from relay.tls.contexts import InboundRoute
from relay.worker.loop import ET, GONE, IN

if TYPE_CHECKING:
    from relay.worker.worker import Worker

# Longer than any backlog: whoever comes while the queue is being emptied does not make it endless.
MOST_QUEUED = 65_536
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger(__name__)


class Acceptor:
    """One listening socket; `routes` are its listener's."""

    __slots__ = ("_family", "_mask", "_sock", "_worker", "name", "routes")

    def __init__(
        self, worker: Worker, name: str, sock: socket.socket, routes: RouteTable[InboundRoute]
    ) -> None:
        self.name = name
        self.routes = routes
        self._worker = worker
        self._sock = sock
        self._family = int(sock.family)
        sock.setblocking(False)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._mask = IN
            worker.loop.add(sock.fileno(), IN, self.on_ready)
        else:
            # The supervisor lets it listen when we serve. Until then it is hung up to epoll, which says so once only to who wants edges.
            self._mask = IN | ET
            worker.loop.add(sock.fileno(), self._mask, self._on_first)

    def _on_first(self, mask: int) -> None:
        if not mask & GONE:
            fd = self._sock.fileno()
            self._worker.loop.watch(fd, self._mask, IN)
            self._worker.loop.handle(fd, self.on_ready)
            self._mask = IN

    def on_ready(self, mask: int) -> None:  # noqa: ARG002 (a listening socket has one kind of event)
        """Accept one: epoll reports it again when there are more, and asking for one that is not there would cost a system call and an exception each time."""
        worker = self._worker
        if not worker.admission.has_room():
            worker.admission.wait_for_room(self)
            return
        try:
            sock, address = accept(self._sock, self._family)
        except OSError as error:
            if error.errno in _NO_RESOURCES:
                log.warning(
                    "cannot accept on %s: %s; the worker waits until sessions end; raise LimitNOFILE, or lower limits.connections",
                    self.name,
                    error.strerror,
                )
                worker.admission.wait_for_room(self)
            return  # else the client has gone again (accept(2): treat as EAGAIN)
        self._begin(sock, address)

    def _begin(self, sock: StreamSocket, address: Address) -> None:
        worker = self._worker
        session = worker.new_session(self, sock, address)
        if worker.admission.too_many_from(session.client_host):
            session.refuse(SessionError(Side.INBOUND, Reason.PER_CLIENT_LIMIT))
            return
        worker.loop.schedule(session)
        session.on_wake(IN)

    def pause(self) -> None:
        """Leave clients in the kernel's queue."""
        self._worker.loop.watch(self._sock.fileno(), self._mask, 0)
        self._mask = 0

    def resume(self) -> None:
        """Accept again."""
        self._worker.loop.watch(self._sock.fileno(), self._mask, IN)
        self._mask = IN

    def close(self) -> None:
        """Take everybody who is already in the kernel's queue, for they were promised an answer by its SYN-ACK, and stop listening in this process.

        At once: where no other process has the socket, whoever comes between the last look into the queue and the end is reset by the kernel.
        So this belongs between two batches of events, where the descriptor's number can be given away.
        """
        self.pause()
        if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._empty_queue()
        self._sock.close()

    def _empty_queue(self) -> None:
        for _ in range(MOST_QUEUED):
            try:
                sock, address = accept(self._sock, self._family)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_RESOURCES:
                    log.warning(
                        "cannot empty the queue of %s: %s; clients in it are left to whoever listens next; raise LimitNOFILE",
                        self.name,
                        error.strerror,
                    )
                    return
                continue  # this client has gone again, or its network (accept(2))
            self._begin(sock, address)

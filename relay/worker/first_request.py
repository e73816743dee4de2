"""The first bytes of a client whose cookie says which backend: read before there is one, and forwarded first when there is.

Theory of operation. The request often comes with the handshake's last flight, so it is looked for at once; else the next edge announces
it, and what epoll watches need not be changed. An edge after which nothing is decided was part of a request, or a record that holds no
data (a key update), after which OpenSSL returns: then the socket is watched level-triggered, for no edge tells what lies behind. Who says nothing in time, or nothing that is HTTP/1, is not broken but goes
where a client without a cookie goes; whatever was read is forwarded all the same, to each backend that is tried, until one has taken it.
A client that is waited for is not half open: browsers open connections that they may use later.

Never: changes a byte; reads more than a request's head and the record that it ends in.
Next: `relay.worker.outbound.step`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.core.cookie import Inserter
from relay.core.hello import NEED_DATA
from relay.core.lifecycle import Event
from relay.core.sniff import Sniffer, SniffResult
from relay.errors import Reason, SessionError, Side
from relay.tls import stream
from relay.tls.pump import Status, watch_alerts
from relay.tls.tcp_info import unread_bytes
from relay.worker.loop import ET, IN, OUT

if TYPE_CHECKING:
    from relay.worker.session import Session

RECORDS_PER_STEP = 16


class FirstRequest:
    """A client's first bytes. `found` is what they say; `head` is to be forwarded before anything else; `inserter` is there until our cookie is on its way."""

    __slots__ = ("_pieces", "_sniffer", "found", "inserter")

    def __init__(self, cookie: str | None = None) -> None:
        self._sniffer = Sniffer(cookie) if cookie is not None else None
        self._pieces: list[bytes] = []
        self.found = SniffResult(http=False, detail="nothing was read")
        self.inserter: Inserter | None = None

    def add(self, data: bytes) -> bool:
        """Take what was read; True when it decides."""
        self._pieces.append(data)
        found = self._sniffer.feed(data) if self._sniffer is not None else NEED_DATA
        if not isinstance(found, SniffResult):
            return False
        self.found = found
        return True

    def keep(self, data: bytes) -> None:
        """Forward this first, whatever it says: a backend was lost before it had taken it."""
        self._pieces.append(data)

    @property
    def head(self) -> bytes:
        """All that was read and not forwarded."""
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    def forget_head(self) -> None:
        """It is the backend's now."""
        self._pieces.clear()


def begin(session: Session, cookie: str) -> None:
    """The client is who it must be: look for its request, and wait for it if it is not there."""
    session.first = first = FirstRequest(cookie)
    watch_alerts(session.inbound.ssl)
    session.advance(Event.LOOK)
    if _read(session, first):
        _go_on(session, Event.LOOKED)
    else:
        session.worker.loop.handle(session.inbound.fd, session.on_wake)
        if unread_bytes(session.inbound.fd):
            # OpenSSL stopped at a record without data (a key update). The edge that
            # announced what lies behind it is past, so look once more.
            session.on_wake(IN)


def step(session: Session) -> None:
    """More of the request is there."""
    first = session.first
    if first is None:
        return
    if _read(session, first):
        _go_on(session, Event.LOOKED)
    elif session.inbound.mask & ET:
        _watch(session, IN)


def too_slow(session: Session) -> None:
    """The deadline of SNIFF has passed: go on without a cookie."""
    _go_on(session, Event.DEADLINE)


def _read(session: Session, first: FirstRequest) -> bool:
    """Read and look; True when it is decided. Raises SessionError when the client's connection has failed."""
    end, pump = session.inbound, session.worker.pump
    for _ in range(RECORDS_PER_STEP):
        data = pump.read(end.ssl)
        if isinstance(data, bytes):
            if first.add(data):
                return True
        elif data == 0:
            if end.mask & OUT:  # what OpenSSL had to write is written
                _watch(session, IN)
            return False
        elif pump.status is Status.SOURCE_WANTS_WRITE:  # OpenSSL must answer a key update first
            _watch(session, IN | OUT)
            return False
        elif pump.status is Status.SOURCE_FAILED:
            failure = stream.failure(Side.INBOUND)
            reason = Reason.INBOUND_RESET if failure.reason is Reason.PEER_GONE else failure.reason
            raise SessionError(Side.INBOUND, reason, failure.detail)
        else:  # its end, which is passed on as it would have been
            end.ended, end.truncated = True, pump.status is Status.TRUNCATED
            return True
    session.on_wake(IN)  # there may be more, and no edge for it; others first
    return False


def _watch(session: Session, mask: int) -> None:
    end = session.inbound
    session.worker.loop.watch(end.fd, end.mask, mask)
    end.mask = mask


def _go_on(session: Session, event: Event) -> None:
    """To a backend. As in every connect, what the client sends meanwhile is an edge."""
    end, loop = session.inbound, session.worker.loop
    loop.handle(end.fd, session.on_early)
    loop.watch(end.fd, end.mask, IN | ET)
    end.mask = IN | ET
    session.queued = False
    session.advance(event)
    session.on_wake(IN)  # to `outbound.step`

"""How many connections a worker has, and which one is closed for a newer one.

Theory of operation. A connection is half open from accept until the client's handshake
is done and its certificate is admitted. Waiting for a client costs only memory, so
half-open connections never stop the accepting. At their limit, the one that has waited
longest without progress is closed at once. Each client address has a limit of its own,
so a client that opens many connections pushes out its own first.

`_half_open` is in the order of last progress, the stalest first. Bytes from the client
are progress, but only MOST_PROGRESS times: a client that sends its handshake byte by
byte soon counts as one that waits. A connection whose bytes wait for us is not stale.

Established sessions are bounded by limits.connections. At that limit the worker stops
accepting, unless half-open clients hold some of the places. A few of those may be real
clients that are about to finish, so the stalest gets a grace time before it is closed.
The grace time is halved with each client that is closed, and doubled every second and
with each client that finishes. Under a flood it is short at once, whatever the number
of established sessions.

Never: closes an established session; looks at a certificate.
Next: `relay.worker.driver.start`
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from itertools import islice
from typing import Protocol

from relay.config.model import Limits
from relay.core.sticky import CLIENT_PREFIXES, Prefixes, source_key
from relay.errors import Reason, SessionError, Side
from relay.worker.listener_settings import Listener
from relay.worker.loop import Loop

# A handshake reads a dozen times at most: two hellos and a chain of certificates, in
# segments. More reads than this do not make a connection look fresh.
MOST_PROGRESS = 16
# At limits.connections a client in its handshake keeps its place this long without
# progress, and three times as long with it; less while such clients do not finish.
GRACE_S = 1.0
_LEAST_GRACE_S = 0.001
# How many of the stalest are examined to find one that does not wait for us.
_MOST_EXAMINED = 16
_INFINITY = float("inf")
_MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address on an IPv6 socket, RFC 4291, 2.5.5.2

Key = str | bytes


class Client(Protocol):
    """A session, as far as its limits are concerned."""

    client_host: str
    listener: Listener
    limited: bool  # it counts in the limits per client address
    started_at: float
    queued: bool

    def refuse(self, error: SessionError) -> None:
        """Close the session for this reason."""


class Pausable(Protocol):
    """A listening socket."""

    def pause(self) -> None:
        """Stop accepting for now."""

    def resume(self) -> None:
        """Accept again."""


class _Progress:
    """How far a half-open client has come."""

    __slots__ = ("at", "key", "times")

    def __init__(self, now: float, key: Key | None) -> None:
        self.at = now
        self.key = key  # see `address_key`; None if addresses have no limit
        self.times = 0


Order = OrderedDict[Client, _Progress]


def address_key(host: str, prefixes: Prefixes = CLIENT_PREFIXES) -> str | bytes:
    """What counts as one client: by default an IPv4 address, or a /64 of IPv6."""
    if ":" in host:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        if not packed.startswith(_MAPPED):
            return packed[:8] if prefixes[1] == CLIENT_PREFIXES[1] else source_key(host, *prefixes)
        host = socket.inet_ntoa(packed[12:])
    return host if prefixes[0] == CLIENT_PREFIXES[0] else source_key(host, *prefixes)


class Admission:
    """The limits of one worker."""

    def __init__(self, limits: Limits, max_connections: int, loop: Loop) -> None:
        self._loop = loop
        self._connections = 0  # half open or not
        self._max_connections = max_connections
        self.per_client = limits.per_client
        self._clients: dict[Key, int] = {}
        self._most = limits.handshakes
        self._most_per_client = limits.half_open_per_client
        self._half_open: Order = OrderedDict()
        self._of_client: dict[Key, Order] = {}
        self._waiting: list[Pausable] = []
        self._grace_s = GRACE_S
        self._look_at = _INFINITY
        self.timer_at = _INFINITY

    # Accepting.

    def has_room(self) -> bool:
        """Whether a client may be accepted. May close a half-open one for it."""
        return self._connections < self._max_connections or self._make_room()

    def _make_room(self) -> bool:
        """Close the stalest half-open connection, unless it may be about to finish."""
        half_open = self._half_open
        if not half_open:
            return False
        stalest, now, grace_s = _stalest(half_open), self._loop.now, self._grace_s
        stalled_s, open_s = now - half_open[stalest].at, now - stalest.started_at
        fresh = stalled_s < grace_s and open_s < 3 * grace_s
        if stalest.queued or (fresh and 2 * len(half_open) <= self._max_connections):
            return False  # mostly established sessions, and this client will soon be one
        self._grace_s = max(_LEAST_GRACE_S, grace_s / 2)
        self._evict(stalest, Reason.HALF_OPEN_LIMIT, "limits.connections was reached")
        return True

    def wait_for_room(self, acceptor: Pausable) -> None:
        """Stop accepting on this socket until a session ends."""
        acceptor.pause()
        self._waiting.append(acceptor)
        if self._half_open:
            queued = _stalest(self._half_open).queued
            self._look_at = self._loop.now + (_LEAST_GRACE_S if queued else self._grace_s)
            self._loop.schedule(self)

    def on_tick(self) -> None:
        """Look again whether there is room."""
        if self._grace_s < GRACE_S:
            self._grace_s *= 2
        if self._waiting and self.has_room():
            self._resume()

    # What the loop calls when the grace time of the stalest is over; see `loop.Timed`.

    def due_at(self) -> float:
        """When to look again."""
        return self._look_at

    def on_deadline(self) -> None:
        """Look again whether there is room. If not, `wait_for_room` is called again."""
        self._look_at = _INFINITY
        if self._waiting:
            self._resume()

    def step(self) -> None:
        """Do nothing: there is no handshake."""

    def on_bug(self) -> None:
        """Do nothing: the next tick looks again."""

    def _resume(self) -> None:
        for acceptor in self._waiting:
            acceptor.resume()
        self._waiting.clear()

    def forget_waiting(self) -> None:
        """The listening sockets are about to be closed: resume none of them."""
        self._waiting.clear()

    # Connections.

    def enter(self, session: Client) -> None:
        """A client was accepted. It may take the place of a staler one."""
        self._connections += 1
        half_open = self._half_open
        progress = _Progress(self._loop.now, None)
        if session.limited:
            self._limit(session, progress)
        if len(half_open) >= self._most:
            why = f"{len(half_open)} connections were half open"
            self._evict(_stalest(half_open), Reason.HALF_OPEN_LIMIT, why)
        half_open[session] = progress

    def limit_client(self, session: Client) -> None:
        """The address of a half-open connection's client is known only now."""
        session.limited = True
        self._limit(session, self._half_open[session])

    def _limit(self, session: Client, progress: _Progress) -> None:
        if not (self.per_client or self._most_per_client):
            return
        key = address_key(session.client_host, session.listener.prefixes)
        if self.per_client:
            self._clients[key] = self._clients.get(key, 0) + 1
        if self._most_per_client:
            progress.key = key
            own = self._of_client.get(key)
            if own is not None and len(own) >= self._most_per_client:
                why = f"{len(own)} connections of this client address were half open"
                self._evict(_stalest(own), Reason.HALF_OPEN_PER_CLIENT, why)
            self._of_client.setdefault(key, OrderedDict())[session] = progress

    def too_many_of(self, session: Client) -> bool:
        """Whether its client has more than limits.per_client connections now."""
        key = address_key(session.client_host, session.listener.prefixes)
        return self._clients.get(key, 0) > self.per_client

    def progress(self, session: Client) -> None:
        """The client has sent something, and we wait for more."""
        progress = self._half_open[session]
        if progress.times < MOST_PROGRESS:
            progress.times += 1
            progress.at = self._loop.now
            self._half_open.move_to_end(session)
            if progress.key is not None:
                self._of_client[progress.key].move_to_end(session)

    def secured(self, session: Client) -> None:
        """The client is admitted: its connection is not half open any more."""
        if self._grace_s < GRACE_S:
            self._grace_s *= 2
        self._leave(session)

    def _leave(self, session: Client) -> None:
        progress = self._half_open.pop(session, None)
        if progress is not None and progress.key is not None:
            own = self._of_client[progress.key]
            del own[session]
            if not own:
                del self._of_client[progress.key]

    def closed(self, session: Client) -> None:
        """A connection was closed, half open or not."""
        self._connections -= 1
        if session in self._half_open:
            self._leave(session)
        if self.per_client and session.limited:
            key = address_key(session.client_host, session.listener.prefixes)
            left = self._clients[key] - 1
            if left:
                self._clients[key] = left
            else:
                del self._clients[key]
        if self._waiting and self._connections < self._max_connections:
            self._resume()

    def _evict(self, session: Client, reason: Reason, why: str) -> None:
        waited_s = self._loop.now - self._half_open[session].at
        detail = f"{why}, and this one had waited {waited_s:.1f} s without progress"
        session.refuse(SessionError(Side.INBOUND, reason, detail))


def _stalest(order: Order) -> Client:
    """The client that has waited longest, and does not wait for us."""
    for session in islice(order, _MOST_EXAMINED):
        if not session.queued:
            return session
    return next(iter(order))

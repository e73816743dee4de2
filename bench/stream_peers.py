"""The two ends of `bench.streams`: each sends, reads and compares, with disturbances.

Every connection has a number. From it follow how much each side sends, and where in the
pattern of `wire` its bytes begin. So both ends know every byte that must come.

Never: leaves a byte uncompared.
"""

from __future__ import annotations

import ctypes
import heapq
import random
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from bench import wire
from bench.libssl import Connection, Context, LibsslError

NUMBER = struct.Struct(">Q")
# Full records, those of other programs, and very short ones.
RECORDS = (16_384, 16_384, 16_384, 8192, 4096, 4096, 2500, 1400, 100, 1)
_RUN_BYTES = 400_000  # about so many in records of one size
_STALL_EVERY_BYTES, _LONGEST_STALL_S = 6_000_000, 0.05
_UPDATE_EVERY_BYTES = 1_000_000
_TURN_BYTES = 262_144
_QUIET_S = 300.0

_pattern = ctypes.create_string_buffer(wire.PATTERN, len(wire.PATTERN))
_pattern_at = ctypes.addressof(_pattern)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the two sides of a connection send: (client, backend)."""

    sizes: tuple[int, int]
    offsets: tuple[int, int]


def plan(number: int, most: int) -> Plan:
    """The plan of a connection. Some sides send little, and half-close early."""
    choose = random.Random(number)
    sizes = [choose.randrange(1, most) >> choose.choice((0, 0, 0, 4, 10)) for _ in range(2)]
    offsets = [choose.randrange(wire.PATTERN_PERIOD) for _ in range(2)]
    return Plan((sizes[0] + NUMBER.size, sizes[1]), (offsets[0], offsets[1]))


class End:
    """One end of one connection."""

    def __init__(self, peer: Peer, sock: socket.socket, number: int | None) -> None:
        self.peer, self.sock, self.number = peer, sock, number
        self.tls = Connection(peer.context, sock.fileno(), peer.server_name)
        self.random = random.Random(number if number is not None else time.monotonic_ns())
        self.shaken = self.read_ended = self.write_ended = False
        self.send_left = self.send_offset = self.read_left = self.read_offset = 0
        self.head = b""  # of what the client sends
        self.pending = 0
        self.record = self.run_left = 0
        self.until_stall = self.until_update = 0
        self.mask = 0
        if number is not None:
            self.follow(number)

    def follow(self, number: int) -> None:
        """Take the numbers from the plan."""
        mine = plan(number, self.peer.most)
        us, them = (1, 0) if self.peer.context.server else (0, 1)
        self.number = number
        self.send_left, self.send_offset = mine.sizes[us], mine.offsets[us]
        self.read_left, self.read_offset = mine.sizes[them], mine.offsets[them]
        if not self.peer.context.server:
            self.head = NUMBER.pack(number)

    # Events.

    def on_ready(self) -> None:
        """Do what the socket allows, but stall now and then."""
        if not self.shaken:
            self.shaken = self.tls.handshake()
            self.watch()
            return
        if not self.read_ended:
            self.read()
        if not self.write_ended and self.number is not None:
            self.write()
        if self.read_ended and self.write_ended:
            self.peer.done(self)
        elif self.until_stall <= 0:
            self.until_stall = int(self.random.expovariate(1 / _STALL_EVERY_BYTES))
            self.peer.stall(self, self.random.random() * _LONGEST_STALL_S)
        else:
            self.watch()

    def watch(self) -> None:
        """Wait for what can be done next."""
        mask = 0 if self.read_ended else select.EPOLLIN
        if self.shaken and self.number is not None and not self.write_ended:
            mask |= select.EPOLLOUT
        self.peer.watch(self, mask)

    def read(self) -> None:
        """Read and compare."""
        for _ in range(_TURN_BYTES // 4096):
            data = self.tls.read()
            if data is None:
                return
            if not data:
                self.read_ended = True
                if self.number is None or self.read_left:
                    raise LibsslError(f"the end came {self.read_left} bytes early")
                return
            if self.number is None:
                data = self.begin(bytes(data))
            self.compare(data)

    def begin(self, data: bytes) -> memoryview:
        """The backend learns the number of the connection."""
        self.head += data
        if len(self.head) < NUMBER.size:
            return memoryview(b"")
        head, self.head = self.head, b""
        self.follow(NUMBER.unpack_from(head)[0])
        self.read_left -= NUMBER.size
        return memoryview(head)[NUMBER.size :]

    def compare(self, data: memoryview) -> None:
        """Every byte must be the next one of the pattern."""
        if data != wire.pattern_at(self.read_offset, len(data)):
            raise LibsslError("wrong bytes")
        self.read_offset += len(data)
        self.read_left -= len(data)
        self.until_stall -= len(data)
        self.peer.compared += len(data)

    def write(self) -> None:
        """Write records of one size for a while, with key updates in between."""
        room = _TURN_BYTES
        while self.send_left and room > 0:
            if self.run_left <= 0:
                self.record = self.random.choice(RECORDS)
                self.run_left = min(_RUN_BYTES, self.record * 500)
            if self.until_update <= 0 and not self.pending:
                self.until_update = int(self.random.expovariate(1 / _UPDATE_EVERY_BYTES))
                self.tls.update_keys(ask=self.random.random() < 0.5)
                self.peer.counts["key updates"] += 1
            size = self.pending or len(self.head) or min(self.record, self.send_left)
            if self.head:
                head = ctypes.create_string_buffer(self.head)
                written = self.tls.write(ctypes.addressof(head), size)
            else:
                at = self.send_offset % wire.PATTERN_PERIOD
                written = self.tls.write(_pattern_at + at, size)
            if not written:
                self.pending = size
                return
            self.pending = 0
            if self.head:
                self.head = b""
            else:
                self.send_offset += written
            self.send_left -= written
            self.run_left -= written
            self.until_update -= written
            self.until_stall -= written
            room -= written
        if not self.send_left and self.tls.close_notify():
            self.write_ended = True
            self.peer.counts["half-closes"] += not self.read_ended
            self.sock.shutdown(socket.SHUT_WR)


class Peer:
    """One process: the client, or the backend."""

    def __init__(
        self,
        context: Context,
        *,
        most: int,
        server_name: str = "",
        report: Callable[[Peer], bool] = lambda _: True,
    ) -> None:
        """`report` is called twice a second. Its answer is whether to go on."""
        self.context, self.most, self.server_name = context, most, server_name
        self.report = report
        self.compared = 0
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.ends: dict[int, End] = {}
        self.epoll = select.epoll()
        self.stalled: list[tuple[float, int, End]] = []
        self.listener: socket.socket | None = None
        self.on_done: Callable[[], None] = lambda: None

    def listen(self, listener: socket.socket) -> None:
        """Serve the clients of this socket."""
        self.listener = listener
        self.epoll.register(listener, select.EPOLLIN)

    def open(self, port: int, number: int) -> None:
        """Begin a connection to the gateway."""
        self.add(socket.create_connection(("127.0.0.1", port)), number)

    def add(self, sock: socket.socket, number: int | None) -> None:
        """A new connection."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = End(self, sock, number)
        self.ends[sock.fileno()] = end
        end.mask = select.EPOLLIN
        self.epoll.register(sock, end.mask)
        self.attempt(end)

    def watch(self, end: End, mask: int) -> None:
        """Wait for other events of its socket."""
        if mask != end.mask:
            end.mask = mask
            self.epoll.modify(end.sock, mask)

    def stall(self, end: End, seconds: float) -> None:
        """Leave the connection alone for a while."""
        self.counts["stalls"] += 1
        self.watch(end, 0)
        heapq.heappush(self.stalled, (time.monotonic() + seconds, end.sock.fileno(), end))

    def attempt(self, end: End) -> None:
        """Do what is possible now. A failure ends this connection only."""
        try:
            end.on_ready()
        except (LibsslError, OSError) as failure:
            self.errors[f"connection {end.number}: {failure}"] += 1
            self.drop(end)

    def done(self, end: End) -> None:
        """Both directions are complete."""
        self.counts["connections"] += 1
        self.drop(end)

    def drop(self, end: End) -> None:
        """Close a connection."""
        if self.ends.pop(end.sock.fileno(), None) is not None:
            end.tls.free()
            end.sock.close()
            self.on_done()

    def run(self) -> None:
        """Until `report` says no, or nothing has moved for a minute."""
        report_at, moved, moved_at = 0.0, -1, time.monotonic()
        while True:
            now = time.monotonic()
            if now >= report_at:
                report_at = now + 0.5
                if self.compared != moved:
                    moved, moved_at = self.compared, now
                elif self.ends and now - moved_at > _QUIET_S:
                    self.errors[f"{len(self.ends)} connections have stopped"] += 1
                    self.report(self)
                    return
                if not self.report(self):
                    return
            while self.stalled and self.stalled[0][0] <= now:
                _, fd, end = heapq.heappop(self.stalled)
                if self.ends.get(fd) is end:
                    end.watch()
            wait = min(report_at, self.stalled[0][0] if self.stalled else report_at) - now
            for fd, _ in self.epoll.poll(max(0.0, wait)):
                if self.listener is not None and fd == self.listener.fileno():
                    self.add(self.listener.accept()[0], None)
                elif fd in self.ends:
                    self.attempt(self.ends[fd])

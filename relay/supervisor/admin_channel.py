"""The supervisor's side of the channel to the admin process.

The channel is a socket pair with JSON lines. It carries requests to show and to
override backends, and nothing else. A request may have an `id`, a number, that its
reply repeats.

The admin process answers unknown clients, so an attacker may take it over. So its
requests are bounded in size, in rate, and in the time that they take in one turn of the
supervisor's loop. While it does not read its replies, its requests are not read.

Never: waits; lets the admin process reload, drain or stop the relay; raises for what
the peer sends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

from relay.shared.messages import Greeting
from relay.shared.replies import Reply

BACKEND_COMMANDS = ("backends", "override")
ALIVE = "alive"  # a heartbeat, with how many log messages were dropped; it has no reply
REQUEST_BYTES = 4096
READ_BYTES = 65536
TURN_S = 0.01
# Requests per second, and at once after a pause. A request that shows all backends
# counts as COSTLY requests.
RATE = 20
BURST = 100
COSTLY = 5
REPEAT_S = 60.0  # the least time between two such messages
MOST_DROPPED = 1_000_000  # dropped messages that one heartbeat may report

log = logging.getLogger(__name__)


class AdminChannel:
    """The channel to one admin process at a time. Call `step` once a turn.

    `answer` makes the reply to a request with one of BACKEND_COMMANDS. `heard_at` is
    when the peer last sent something. `broken`: the peer did what the relay's own admin
    process never does, and should be replaced.
    """

    def __init__(
        self, selector: selectors.BaseSelector, answer: Callable[[dict[str, Any]], Reply]
    ) -> None:
        self._selector = selector
        self._answer = answer
        self._socket: socket.socket | None = None
        self._waits_for = 0  # the events in the selector; 0: the socket is not registered
        self._received = bytearray()
        self._unsent = b""
        self._allowance = float(BURST)
        self._allowed_at = 0.0
        self._resume_at: float | None = None
        self._repeat_at = float("-inf")
        self.broken = False
        self.heard_at = float("-inf")
        self.count_dropped: Callable[[int], None] = lambda _: None

    def open(self, greeting: Greeting) -> socket.socket:
        """Open the channel for a new admin process; returns the other end.

        Its first line is the greeting. Raises OSError.
        """
        self.close()
        own_end, other_end = socket.socketpair()
        try:
            own_end.setblocking(False)
            own_end.sendall(json.dumps(greeting).encode() + b"\n")
        except OSError:
            own_end.close()
            other_end.close()
            raise
        self._socket, self.broken = own_end, False
        self._received, self._unsent = bytearray(), b""
        self.heard_at = float("-inf")
        self._wait_for(selectors.EVENT_READ)
        return other_end

    @property
    def resume_at(self) -> float:
        """When `step` has something to do; infinity if it has not."""
        return self._resume_at if self._resume_at is not None else float("inf")

    def step(self, now: float) -> None:
        """Read again from a peer that exceeded the rate, when its pause is over."""
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            if self._socket is not None:
                self._guarded(self._work)

    def _on_ready(self, events: int) -> None:
        if self._socket is None:
            return
        if events & selectors.EVENT_WRITE:
            self._guarded(self._work)
        else:
            self._guarded(self._receive)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
        except Exception:
            log.exception("bug: the channel to the admin process is closed; please report this")
            self._break()

    def _receive(self) -> None:
        assert self._socket is not None  # noqa: S101  for mypy: registered means open
        data = self._socket.recv(READ_BYTES)
        if not data:
            self.close()
            return
        self.heard_at = time.monotonic()
        self._received += data
        self._work()

    def _work(self) -> None:
        """Send what is left, then answer requests, as far as this turn allows."""
        until_at = time.monotonic() + TURN_S
        replies: list[bytes] = []
        while not self._unsent and self._socket is not None:
            line, newline, rest = self._received.partition(b"\n")
            if len(line) > REQUEST_BYTES:
                log.error(
                    "the admin process sent a request of more than %d bytes; it is replaced",
                    REQUEST_BYTES,
                )
                self._break()
                return
            if not newline or not self._is_within_rate(line) or time.monotonic() > until_at:
                break
            self._received = rest
            replies.append(self._reply(bytes(line)))
        self._unsent += b"".join(replies)
        self._send()

    def _is_within_rate(self, line: bytearray) -> bool:
        """Whether the request may be answered now. If so it is counted."""
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._allowed_at) * RATE)
        self._allowed_at = now
        cost = COSTLY if b"backends" in line else 1
        if self._allowance < cost:
            self._resume_at = now + (cost - self._allowance) / RATE
            return False
        self._allowance -= cost
        return True

    def _reply(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if isinstance(request, dict) and request.get("command") == ALIVE:
            dropped = request.get("dropped")
            if type(dropped) is int and 0 < dropped <= MOST_DROPPED:
                self.count_dropped(dropped)
            return b""
        if not isinstance(request, dict) or request.get("command") not in BACKEND_COMMANDS:
            return _line(
                {"ok": False, "error": f"expected a command of {', '.join(BACKEND_COMMANDS)}"}
            )
        number = request.get("id")
        try:
            return _line(self._answer(request), number)
        except Exception as error:
            if time.monotonic() >= self._repeat_at:
                self._repeat_at = time.monotonic() + REPEAT_S
                log.exception("bug: a request of the admin process failed; please report this")
            return _line(
                {
                    "ok": False,
                    "error": f"{type(error).__name__}; this is a bug, its traceback is in the log",
                },
                number,
            )

    def _send(self) -> None:
        if self._socket is None:
            return
        if self._unsent:
            with contextlib.suppress(BlockingIOError):
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        if self._unsent:
            self._wait_for(selectors.EVENT_WRITE)
        elif self._resume_at is not None:
            self._wait_for(0)
        elif b"\n" in self._received:
            self._wait_for(selectors.EVENT_WRITE)  # the next turn answers the rest
        else:
            self._wait_for(selectors.EVENT_READ)

    def _wait_for(self, events: int) -> None:
        if self._socket is None or events == self._waits_for:
            return
        if not events:
            self._selector.unregister(self._socket)
        elif not self._waits_for:
            self._selector.register(self._socket, events, self._on_ready)
        else:
            self._selector.modify(self._socket, events, self._on_ready)
        self._waits_for = events

    def close_files(self) -> None:
        """Close the descriptor but keep the selector: in a forked child."""
        if self._socket is not None:
            self._socket.close()

    def _break(self) -> None:
        self.close()
        self.broken = True

    def close(self) -> None:
        """Close the channel."""
        if self._socket is not None:
            self._wait_for(0)
            self._socket.close()
            self._socket = None
        self._received, self._unsent, self._resume_at = bytearray(), b"", None


def _line(reply: Reply, number: object = None) -> bytes:
    """The line of a reply. `number` is the request's, if it has one."""
    identity = {"id": number} if isinstance(number, int) else {}
    return json.dumps({**reply, **identity}).encode() + b"\n"

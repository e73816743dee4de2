"""The supervisor's line to the admin process: JSON lines over a socket pair, for reading backends and overriding them, and nothing else.

A request may have an `id`, a number, which its reply repeats. The admin process answers
strangers, so it may be taken over: what comes from it is bounded in size, in rate and in
the time it may take in one turn of the supervisor's loop, and no error leaves this file.
A peer that does not read its replies is not listened to until it does.

Never: waits; lets the admin process reload, drain or stop the relay; raises for what a peer sends.
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

COMMANDS = ("backends", "override")
ALIVE = "alive"  # a sign of life, with how many messages it could not write; has no reply
REQUEST_BYTES = 4096
READ_BYTES = 65536
TURN_S = 0.01
# Lines a second, and at once after a pause; one that shows all backends counts as COSTLY lines.
RATE = 20
BURST = 100
COSTLY = 5
COMPLAIN_S = 60.0
MOST_DROPPED = 1_000_000  # messages that one sign of life may report

log = logging.getLogger(__name__)


class AdminChannel:
    """One admin process at a time. `answer` makes the reply to a request whose command is one of COMMANDS.

    Call `step` once a turn. `heard_at` is when the peer said something last. `broken` is true when the peer did what no admin process of ours does: it should be replaced.
    """

    def __init__(
        self, selector: selectors.BaseSelector, answer: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        self._selector = selector
        self._answer = answer
        self._ours: socket.socket | None = None
        self._waits_for = 0  # what the selector was told; 0: the socket is not registered
        self._received = bytearray()
        self._unsent = b""
        self._allowance = float(BURST)
        self._allowed_at = 0.0
        self._resume_at: float | None = None
        self._complain_at = float("-inf")
        self.broken = False
        self.heard_at = float("-inf")
        self.count_dropped: Callable[[int], None] = lambda _: None

    def open(self, greeting: dict[str, Any]) -> socket.socket:
        """The other end, for a new admin process; the first line in it is the greeting. Raises OSError."""
        self.close()
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            ours.sendall(json.dumps(greeting).encode() + b"\n")
        except OSError:
            ours.close()
            theirs.close()
            raise
        self._ours, self._received, self._unsent, self.broken = ours, bytearray(), b"", False
        self.heard_at = float("-inf")
        self._wait_for(selectors.EVENT_READ)
        return theirs

    @property
    def resume_at(self) -> float:
        """When `step` has something to do again; infinity while it has not."""
        return self._resume_at if self._resume_at is not None else float("inf")

    def step(self, now: float) -> None:
        """Listen again to a peer that has said too much."""
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            if self._ours is not None:
                self._guarded(self._work)

    def _on_ready(self, events: int) -> None:
        if self._ours is None:
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
            log.exception("bug: the line to the admin process is closed; please report this")
            self._break()

    def _receive(self) -> None:
        assert self._ours is not None  # noqa: S101  for mypy: registered means open
        data = self._ours.recv(READ_BYTES)
        if not data:
            self.close()
            return
        self.heard_at = time.monotonic()
        self._received += data
        self._work()

    def _work(self) -> None:
        """Send what is left, then answer what has come, as far as this turn allows."""
        until_at = time.monotonic() + TURN_S
        replies: list[bytes] = []
        while not self._unsent and self._ours is not None:
            line, newline, rest = self._received.partition(b"\n")
            if len(line) > REQUEST_BYTES:
                log.error(
                    "the admin process sent a request of more than %d bytes; it is ended",
                    REQUEST_BYTES,
                )
                self._break()
                return
            if not newline or not self._may(line) or time.monotonic() > until_at:
                break
            self._received = rest
            replies.append(self._reply(bytes(line)))
        self._unsent += b"".join(replies)
        self._send()

    def _may(self, line: bytearray) -> bool:
        """Whether another line is within the rate."""
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
        if not isinstance(request, dict) or request.get("command") not in COMMANDS:
            return _line({"ok": False, "error": f"expected a command of {', '.join(COMMANDS)}"})
        number = request.get("id")
        identity = {"id": number} if isinstance(number, int) else {}
        try:
            return _line({**self._answer(request), **identity})
        except Exception as error:
            if time.monotonic() >= self._complain_at:
                self._complain_at = time.monotonic() + COMPLAIN_S
                log.exception("bug: a request of the admin process failed; please report this")
            return _line(
                {
                    "ok": False,
                    "error": f"{type(error).__name__}; this is a bug, its traceback is in the relay's log",
                    **identity,
                }
            )

    def _send(self) -> None:
        if self._ours is None:
            return
        if self._unsent:
            with contextlib.suppress(BlockingIOError):
                self._unsent = self._unsent[self._ours.send(self._unsent) :]
        if self._unsent:
            self._wait_for(selectors.EVENT_WRITE)
        elif self._resume_at is not None:
            self._wait_for(0)
        elif b"\n" in self._received:
            self._wait_for(selectors.EVENT_WRITE)  # the next turn goes on with what is here
        else:
            self._wait_for(selectors.EVENT_READ)

    def _wait_for(self, events: int) -> None:
        if self._ours is None or events == self._waits_for:
            return
        if not events:
            self._selector.unregister(self._ours)
        elif not self._waits_for:
            self._selector.register(self._ours, events, self._on_ready)
        else:
            self._selector.modify(self._ours, events, self._on_ready)
        self._waits_for = events

    def close_files(self) -> None:
        """Let go of the descriptor without a word to the selector: what a forked child does."""
        if self._ours is not None:
            self._ours.close()

    def _break(self) -> None:
        self.close()
        self.broken = True

    def close(self) -> None:
        """Hang up."""
        if self._ours is not None:
            self._wait_for(0)
            self._ours.close()
            self._ours = None
        self._received, self._unsent, self._resume_at = bytearray(), b"", None


def _line(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply).encode() + b"\n"

"""The supervisor's line to the admin process: JSON lines over a socket pair, for reading backends and overriding them, and nothing else.

A request may have an `id`, which its reply repeats. A peer that does not read its replies is not listened to until it does.

Never: waits; lets the admin process reload, drain or stop the relay.
"""

from __future__ import annotations

import contextlib
import json
import logging
import selectors
import socket
from collections.abc import Callable
from typing import Any

COMMANDS = ("backends", "override")
REQUEST_BYTES = 4096
READ_BYTES = 65536

log = logging.getLogger(__name__)


class Channel:
    """One admin process at a time. `answer` makes the reply to a request whose command is one of COMMANDS."""

    def __init__(self, selector: selectors.BaseSelector, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._selector = selector
        self._answer = answer
        self._ours: socket.socket | None = None
        self._received = bytearray()
        self._unsent = b""

    def open(self, greeting: dict[str, Any]) -> socket.socket:
        """The other end, for a new admin process; the first line in it is the greeting. Raises OSError."""
        self.close()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        ours.sendall(json.dumps(greeting).encode() + b"\n")
        self._ours, self._received, self._unsent = ours, bytearray(), b""
        self._selector.register(ours, selectors.EVENT_READ, self._on_ready)
        return theirs

    def _on_ready(self, events: int) -> None:
        assert self._ours is not None  # noqa: S101  for mypy: registered means open
        try:
            if events & selectors.EVENT_WRITE:
                self._send()
            else:
                self._receive(self._ours)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()

    def _receive(self, ours: socket.socket) -> None:
        data = ours.recv(READ_BYTES)
        if not data:
            self.close()
            return
        self._received += data
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        if len(rest) > REQUEST_BYTES or any(len(line) > REQUEST_BYTES for line in lines):
            log.error("the admin process sent a request of more than %d bytes; it is not listened to any more", REQUEST_BYTES)
            self.close()
            return
        self._unsent = b"".join(self._reply(bytes(line)) for line in lines)
        if self._unsent:
            self._send()

    def _reply(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict) or request.get("command") not in COMMANDS:
            return json.dumps({"ok": False, "error": f"expected a command of {', '.join(COMMANDS)}"}).encode() + b"\n"
        identity = {"id": request["id"]} if "id" in request else {}
        return json.dumps({**self._answer(request), **identity}).encode() + b"\n"

    def _send(self) -> None:
        assert self._ours is not None  # noqa: S101  for mypy
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self._ours.send(self._unsent) :]
        self._selector.modify(self._ours, selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ, self._on_ready)

    def close_files(self) -> None:
        """Let go of the descriptor without a word to the selector: what a forked child does."""
        if self._ours is not None:
            self._ours.close()

    def close(self) -> None:
        """Hang up."""
        if self._ours is not None:
            self._selector.unregister(self._ours)
            self._ours.close()
            self._ours = None

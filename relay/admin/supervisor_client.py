"""The admin process's end of its line to the supervisor: JSON lines over a socket pair.

Never: says more than `backends`, `override` and signs of life; the supervisor would not hear it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

from relay.errors import RelayError
from relay.logs import messages

PATIENCE_S = 3.0
BEAT_S = 1.0
LINE_BYTES = 16 * 1024 * 1024


class SupervisorClient:
    """One connection, one request at a time. `greeting` is the first line, which the supervisor writes before we start. Raises RelayError."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._received = b""
        self._number = 0
        self._dropped = 0  # messages, as the supervisor knows
        self._sending = False
        self._lock = asyncio.Lock()
        self._socket.settimeout(PATIENCE_S)
        try:
            while b"\n" not in self._received:
                more = self._socket.recv(65536)
                if not more:
                    raise RelayError("the supervisor said nothing")
                self._received += more
        except OSError as error:
            raise RelayError(f"the supervisor said nothing: {error}") from None
        self._socket.setblocking(False)
        self.greeting = self._next_line() or {}

    async def beat(self) -> None:
        """Once a second: tell the supervisor that the loop turns, and what was dropped."""
        while True:
            messages.flush()
            dropped = messages.dropped()
            beat = json.dumps({"command": "alive", "dropped": dropped - self._dropped})
            with contextlib.suppress(OSError):
                # A request that is under way is a sign of life too.
                if not self._sending:
                    self._socket.send(beat.encode() + b"\n")
                    self._dropped = dropped
            await asyncio.sleep(BEAT_S)

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The supervisor's reply. Raises RelayError when there is none in time."""
        async with self._lock:
            self._number += 1
            line = (
                json.dumps({"command": command, "id": self._number, **arguments}).encode() + b"\n"
            )
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await asyncio.get_running_loop().sock_sendall(self._socket, line)
                    return await self._reply(self._number)
            except TimeoutError:
                raise RelayError(
                    f"the supervisor did not answer within {PATIENCE_S:g} s; look at its log"
                ) from None
            except OSError as error:
                raise RelayError(
                    f"the supervisor cannot be asked: {error.strerror or error}; look at its log"
                ) from None

    async def _reply(self, number: int) -> dict[str, Any]:
        while True:
            # A reply to an earlier request that was given up is passed over.
            while (reply := self._next_line()) is not None:
                if reply.get("id") == number:
                    return reply
            more = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
            if not more or len(self._received) > LINE_BYTES:
                raise ConnectionAbortedError("it hung up")
            self._received += more

    def _next_line(self) -> dict[str, Any] | None:
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return None
        self._received = rest
        found = json.loads(line)
        return found if isinstance(found, dict) else {}

"""The admin process's end of the admin channel: JSON lines over a socket pair.

Never: sends anything but `backends`, `override` and heartbeats; the supervisor accepts
nothing else from this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any, cast

from relay.errors import RelayError
from relay.logs import messages
from relay.shared.messages import Greeting

TIMEOUT_S = 3.0
HEARTBEAT_S = 1.0
LINE_BYTES = 16 * 1024 * 1024


class SupervisorClient:
    """One connection, one request at a time.

    `greeting` is the supervisor's first line: it has the `[admin]` settings. Raises
    RelayError when there is none in time.
    """

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._received = b""
        self._number = 0
        self._reported = 0  # dropped messages that the supervisor has been told of
        self._sending = False
        self._lock = asyncio.Lock()
        self._socket.settimeout(TIMEOUT_S)
        try:
            while b"\n" not in self._received:
                more = self._socket.recv(65536)
                if not more:
                    raise RelayError("the supervisor closed the admin channel before its greeting")
                self._received += more
        except OSError as error:
            raise RelayError(f"the supervisor sent no greeting: {error}") from None
        self._socket.setblocking(False)
        self.greeting = cast("Greeting", self._next_line() or {})

    async def send_heartbeats(self) -> None:
        """Once a second: show that the loop runs, report dropped messages."""
        while True:
            messages.flush()
            dropped = messages.dropped()
            heartbeat = json.dumps({"command": "alive", "dropped": dropped - self._reported})
            with contextlib.suppress(OSError):
                # Not in the middle of a request. The request itself shows that the
                # process is alive.
                if not self._sending:
                    self._socket.send(heartbeat.encode() + b"\n")
                    self._reported = dropped
            await asyncio.sleep(HEARTBEAT_S)

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The supervisor's reply. Raises RelayError when there is none in time."""
        async with self._lock:
            self._number += 1
            line = (
                json.dumps({"command": command, "id": self._number, **arguments}).encode() + b"\n"
            )
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await self._send(line)
                    return await self._reply(self._number)
            except TimeoutError:
                raise RelayError(
                    f"the supervisor did not answer within {TIMEOUT_S:g} s; see its log"
                ) from None
            except OSError as error:
                raise RelayError(
                    "the connection to the supervisor failed: "
                    f"{error.strerror or error}; see its log"
                ) from None

    async def _send(self, line: bytes) -> None:
        self._sending = True
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, line)
        finally:
            self._sending = False

    async def _reply(self, number: int) -> dict[str, Any]:
        while True:
            # Skip late replies to earlier requests that timed out.
            while (reply := self._next_line()) is not None:
                if reply.get("id") == number:
                    return reply
            more = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
            if not more or len(self._received) > LINE_BYTES:
                raise ConnectionAbortedError("it closed the connection")
            self._received += more

    def _next_line(self) -> dict[str, Any] | None:
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return None
        self._received = rest
        found = json.loads(line)
        return found if isinstance(found, dict) else {}

"""The server's side of the control socket: one JSON line in, one JSON line out.

It serves `relay status`, `reload`, `drain`, `stop`, `kick`, `backend` and `apply`;
`control_client` asks it.

Never: waits for a client.
"""

from __future__ import annotations

import json
import logging
import selectors
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from relay.shared.replies import FailureReply, Reply
from relay.supervisor.process import EXIT_BUG
from relay.supervisor.unix_sockets import bound_path, inode_at

EXIT_USAGE = 64  # the client asked for something that does not exist
_OF_RELAY = ("status", "reload", "end_canary", "upgrade", "drain", "stop")
COMMANDS = (*_OF_RELAY, "backends", "override", "apply", "kick", "kicks")
REQUEST_BYTES = 1024 * 1024
_READ_BYTES = 65_536
CLIENTS = 32
PATIENCE_S = 5.0
TURN_S = 0.02  # what commands may take of one turn of the supervisor's loop
REPEAT_S = 60.0  # the least time between two such messages
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

log = logging.getLogger(__name__)


def refused(why: str) -> FailureReply:
    """The answer to a request that asks for something that does not exist."""
    return {"ok": False, "code": EXIT_USAGE, "error": why}


class Client:
    """One connection: a request line, then one reply, each with a deadline of its own.

    Between the two there is no deadline: a reload may take minutes.
    """

    def __init__(self, server: ControlServer, connection: socket.socket) -> None:
        self._server = server
        self._connection = connection
        self._request = bytearray()
        self._reply = memoryview(b"")
        self._hold = self._wants_progress = False
        self._is_last = True  # whether `_reply` ends the conversation
        self.expires_at = time.monotonic() + PATIENCE_S

    def fileno(self) -> int:
        """For the selector."""
        return self._connection.fileno()

    @property
    def uid(self) -> int:
        """The user of the process that asks, by the kernel."""
        return _credentials(self._connection)[1]

    def on_ready(self, events: int) -> None:
        """The socket is readable or writable."""
        try:
            if events & selectors.EVENT_WRITE:
                self._send()
            elif events & selectors.EVENT_READ and not self._server.turn_is_over():
                self._receive()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._server.forget(self)

    def _receive(self) -> None:
        received = self._connection.recv(_READ_BYTES)
        if not received or self.expires_at == float("inf"):
            # It hung up, or it sent more while it should wait for the reply.
            self._server.forget(self)
            return
        self._request += received
        if b"\n" not in received and len(self._request) < REQUEST_BYTES:
            return
        line, newline, _ = self._request.partition(b"\n")
        self.expires_at = float("inf")  # now the client waits for the supervisor
        request = parse_request(bytes(line)) if newline else None
        if request is None:
            known = ", ".join(COMMANDS)
            expected = f'expected one line like {{"command": "status"}} with one of {known}'
            self.reply({"ok": False, "code": EXIT_USAGE, "error": expected})
            return
        self._wants_progress = request.get("progress") is True
        try:
            self._server.on_command(request, self)
        except Exception as error:
            log.exception("bug: the command %s failed; please report this", request["command"])
            what = f"{type(error).__name__}: {error}"
            bug = f"{what}; this is a bug, its traceback is in the relay's log"
            self.reply({"ok": False, "code": EXIT_BUG, "error": bug})

    def tell(self, progress: str) -> None:
        """Send a line of progress, if the client wants that, before the reply."""
        if self._wants_progress:
            self._begin_to_send({"progress": progress}, is_last=False)

    def reply(self, reply: Reply, *, hold: bool = False) -> None:
        """Send the reply and close.

        With `hold`, keep the connection open until the supervisor ends. Its end tells
        the client that the relay has stopped.
        """
        self._hold = hold
        self._begin_to_send(reply, is_last=True)

    def _begin_to_send(self, message: Mapping[str, Any], *, is_last: bool) -> None:
        if not self._reply or is_last:  # a client that reads nothing gets no more time
            self.expires_at = time.monotonic() + PATIENCE_S
        self._reply = memoryview(bytes(self._reply) + json.dumps(message).encode() + b"\n")
        self._is_last = is_last
        self._server.want_write(self)

    def _send(self) -> None:
        self._reply = self._reply[self._connection.send(self._reply) :]
        if self._reply:
            return
        if self._hold or not self._is_last:
            self.expires_at = float("inf")
            self._server.want_read(self)
        else:
            self._server.forget(self)

    @property
    def is_new(self) -> bool:
        """Whether it has sent nothing yet."""
        return not self._request

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class ControlServer:
    """The listening socket and its clients, in the supervisor's selector.

    `on_command` must call `Client.reply`, at once or later. `child_named` tells the
    name of one of the relay's own processes from its pid, "" for other processes.
    """

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        on_command: Callable[[dict[str, Any], Client], None] = lambda _request, _client: None,
        child_named: Callable[[int], str] = lambda _pid: "",
    ) -> None:
        self.child_named = child_named
        self._repeat_at = float("-inf")
        self._turn_until_at: float | None = None
        self._listener = listener
        self._inode = inode_at(bound_path(listener))
        self._selector = selector
        self._clients: set[Client] = set()
        self.on_command = on_command
        selector.register(listener, selectors.EVENT_READ, lambda _events: self._accept())

    def is_at(self, path: Path) -> bool:
        """Whether this path leads to the socket that this server listens on."""
        return self._inode is not None and inode_at(path) == self._inode

    def listen_on(self, listener: socket.socket) -> None:
        """Listen on another socket. Earlier clients still get their replies."""
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener, self._inode = listener, inode_at(bound_path(listener))
        self._selector.register(listener, selectors.EVENT_READ, lambda _events: self._accept())

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self._clients) >= CLIENTS or self._is_child(connection):
            connection.close()
            return
        self.serve(connection)

    def serve(self, connection: socket.socket) -> Client:
        """A client has connected."""
        client = Client(self, connection)
        self._clients.add(client)
        self._selector.register(client, selectors.EVENT_READ, client.on_ready)
        return client

    def take(self, connection: socket.socket) -> Client:
        """A client of the version before an upgrade, which waits for its reply."""
        client = self.serve(connection)
        client.expires_at = float("inf")
        return client

    @property
    def fd(self) -> int:
        """The listening socket."""
        return self._listener.fileno()

    @property
    def new_clients(self) -> list[Client]:
        """Clients that have connected and sent nothing yet."""
        return [client for client in self._clients if client.is_new]

    def _is_child(self, connection: socket.socket) -> bool:
        """Whether a worker, the checker or the admin process connects.

        None of them has a reason to, so an attacker may control it.
        """
        pid, _ = _credentials(connection)
        name = self.child_named(pid)
        if name and time.monotonic() >= self._repeat_at:
            self._repeat_at = time.monotonic() + REPEAT_S
            log.error(
                "%s (pid %d) connected to the control socket and was refused: it never has a"
                " reason to connect, so an attacker may control it; investigate this machine",
                name,
                pid,
            )
        return bool(name)

    def turn_is_over(self) -> bool:
        """Whether commands have used up their time; others wait for the next turn."""
        now = time.monotonic()
        if self._turn_until_at is None:
            self._turn_until_at = now + TURN_S
        return now > self._turn_until_at

    def want_write(self, client: Client) -> None:
        """The client has a reply to send; ignored if it hung up meanwhile."""
        if client in self._clients:
            self._selector.modify(client, selectors.EVENT_WRITE, client.on_ready)

    def want_read(self, client: Client) -> None:
        """Wait for the client to hang up."""
        self._selector.modify(client, selectors.EVENT_READ, client.on_ready)

    def forget(self, client: Client) -> None:
        """Close a client's connection."""
        if client in self._clients:
            self._clients.remove(client)
            self._selector.unregister(client)
        client.close()

    def expire(self, now: float) -> None:
        """Once a turn: close clients that have passed their deadline."""
        self._turn_until_at = None
        for client in [client for client in self._clients if now >= client.expires_at]:
            self.forget(client)

    def close_files(self) -> None:
        """Close all descriptors, but leave the selector alone: for a forked child."""
        self._listener.close()
        for client in self._clients:
            client.close()

    def close(self) -> None:
        """Close every client and the listening socket."""
        for client in list(self._clients):
            self.forget(client)
        self._selector.unregister(self._listener)
        self._listener.close()


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """Pid and user of the process at the other end, when it connected."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return pid, uid


def parse_request(line: bytes) -> dict[str, Any] | None:
    """The request; None if it is not an object with a command of COMMANDS."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    command = request.get("command") if isinstance(request, dict) else None
    return request if isinstance(command, str) and command in COMMANDS else None

"""The control socket: one JSON line in, one JSON line out, for `relay status`, `reload`, `drain`, `stop` and `backend`.

Never: waits for a client. Whatever one sends, or does not send, the fleet is not disturbed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import selectors
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relay.errors import ControlError
from relay.supervisor.process import EXIT_BUG

EXIT_USAGE = 64  # of a command that asked for what is not there
COMMANDS = ("status", "reload", "drain", "stop", "backends", "override")
REQUEST_BYTES = 4096
REPLY_BYTES = 16 * 1024 * 1024
CLIENTS = 32
PATIENCE_S = 5.0
TURN_S = 0.02
COMPLAIN_S = 60.0
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

Reply = dict[str, Any]

log = logging.getLogger(__name__)


def control_path(state_dir: Path) -> Path:
    """Where the control socket of a relay is."""
    return state_dir / "control.sock"


class Client:
    """One connection: a request line with a deadline, then one reply with a deadline. A reply may come much later than its request."""

    def __init__(self, server: ControlServer, connection: socket.socket) -> None:
        self._server = server
        self._connection = connection
        self._request = bytearray()
        self._reply = memoryview(b"")
        self._hold = False
        self.expires_at = time.monotonic() + PATIENCE_S

    def fileno(self) -> int:
        """For the selector."""
        return self._connection.fileno()

    def on_ready(self, events: int) -> None:
        """Something can be read or written."""
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
        received = self._connection.recv(REQUEST_BYTES)
        if not received or self.expires_at == float("inf"):
            # Gone, or talking while it is to wait: either way there is nothing more to do for it.
            self._server.forget(self)
            return
        self._request += received
        line, newline, _ = self._request.partition(b"\n")
        if not newline and len(self._request) < REQUEST_BYTES:
            return
        self.expires_at = float("inf")  # from here on it waits for us
        request = parse_request(bytes(line)) if newline else None
        if request is None:
            self.reply(
                {
                    "ok": False,
                    "code": EXIT_USAGE,
                    "error": f'expected one line like {{"command": "status"}} with one of {", ".join(COMMANDS)}',
                }
            )
        else:
            try:
                self._server.on_command(request, self)
            except Exception as error:
                log.exception("bug: the command %s failed; please report this", request["command"])
                self.reply(
                    {
                        "ok": False,
                        "code": EXIT_BUG,
                        "error": f"{type(error).__name__}: {error}; this is a bug, its traceback is in the relay's log",
                    }
                )

    def reply(self, reply: Reply, *, hold: bool = False) -> None:
        """Send the answer and close; with `hold` stay open until we end, so that the client can see when that is."""
        self._hold = hold
        self._reply = memoryview(json.dumps(reply).encode() + b"\n")
        self.expires_at = time.monotonic() + PATIENCE_S
        self._server.want_write(self)

    def _send(self) -> None:
        self._reply = self._reply[self._connection.send(self._reply) :]
        if self._reply:
            return
        if self._hold:
            self.expires_at = float("inf")
            self._server.want_read(self)
        else:
            self._server.forget(self)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class ControlServer:
    """The listening side, inside the supervisor's selector. `on_command` must see to it that `Client.reply` is called, now or later."""

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        on_command: Callable[[dict[str, Any], Client], None],
        child_named: Callable[[int], str] = lambda _pid: "",
    ) -> None:
        self._child_named = child_named
        self._complain_at = float("-inf")
        self._turn_until_at: float | None = None
        self._listener = listener
        self._inode = _inode(control_path_of(listener))
        self._selector = selector
        self._clients: set[Client] = set()
        self.on_command = on_command
        selector.register(listener, selectors.EVENT_READ, lambda _events: self._accept())

    def is_at(self, path: Path) -> bool:
        """Whether clients that connect to this path reach us."""
        return self._inode is not None and _inode(path) == self._inode

    def listen_on(self, listener: socket.socket) -> None:
        """Go over to another socket; clients of the one before are still answered."""
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener, self._inode = listener, _inode(control_path_of(listener))
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
        client = Client(self, connection)
        self._clients.add(client)
        self._selector.register(client, selectors.EVENT_READ, client.on_ready)

    def _is_child(self, connection: socket.socket) -> bool:
        """Whether one of our own processes connects. None has a reason to: it must have been taken over."""
        pid, _, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        name = self._child_named(pid)
        if name and time.monotonic() >= self._complain_at:
            self._complain_at = time.monotonic() + COMPLAIN_S
            log.error(
                "%s (pid %d) connects to the control socket and is refused: it does what it should not; find out why",
                name,
                pid,
            )
        return bool(name)

    def turn_is_over(self) -> bool:
        """Whether the commands of this turn of the loop have taken long enough; the rest comes next turn."""
        now = time.monotonic()
        if self._turn_until_at is None:
            self._turn_until_at = now + TURN_S
        return now > self._turn_until_at

    def want_write(self, client: Client) -> None:
        """The client has a reply to send. One that hung up meanwhile is no longer known."""
        if client in self._clients:
            self._selector.modify(client, selectors.EVENT_WRITE, client.on_ready)

    def want_read(self, client: Client) -> None:
        """The client is only watched for its end."""
        self._selector.modify(client, selectors.EVENT_READ, client.on_ready)

    def forget(self, client: Client) -> None:
        """Hang up on a client."""
        if client in self._clients:
            self._clients.remove(client)
            self._selector.unregister(client)
        client.close()

    def expire(self, now: float) -> None:
        """Once a turn: hang up on clients that are slower than PATIENCE_S."""
        self._turn_until_at = None
        for client in [client for client in self._clients if now >= client.expires_at]:
            self.forget(client)

    def close_files(self) -> None:
        """Let go of all descriptors without a word to the selector: what a forked child does."""
        self._listener.close()
        for client in self._clients:
            client.close()

    def close(self) -> None:
        """Hang up on everybody."""
        for client in list(self._clients):
            self.forget(client)
        self._selector.unregister(self._listener)
        self._listener.close()


def control_path_of(listener: socket.socket) -> Path:
    """Where a unix socket was bound."""
    return Path(listener.getsockname())


def _inode(path: Path) -> tuple[int, int] | None:
    """What a file is, whatever it is called; None when it is not there."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def parse_request(line: bytes) -> dict[str, Any] | None:
    """A request line as an object whose `command` is one of COMMANDS, None when it is not one."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    command = request.get("command") if isinstance(request, dict) else None
    return request if isinstance(command, str) and command in COMMANDS else None


def ask(
    state_dir: Path, command: str, timeout_s: float, *, until_end: bool = False, **arguments: Any
) -> Reply:
    """Send one command, with its arguments, to the supervisor of `state_dir` and return its reply.

    With `until_end` also wait, within the same time, until the supervisor hangs up, which it does when it ends. Raises ControlError.
    """
    path = control_path(state_dir)
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise ControlError(
                f"no relay answers at {path}: it is not running, or it uses another state_dir; start it with: relay start"
            ) from None
        except PermissionError:
            raise ControlError(
                f"{path}: permission denied; run this as the user that started the relay"
            ) from None
        except BlockingIOError:
            raise ControlError(
                f"{path}: too many clients wait for the relay, or it is stopped; see: ps -o stat,pid,comm -C relay"
            ) from None
        except OSError as error:
            raise ControlError(
                f"{path}: {error.strerror or error}; choose a shorter relay.state_dir if the path is longer than 107 bytes"
            ) from None
        try:
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            reply = _read_line(connection, deadline)
            if until_end:
                with contextlib.suppress(ConnectionError):
                    connection.settimeout(max(0.001, deadline - time.monotonic()))
                    connection.recv(1)
        except TimeoutError:
            raise ControlError(
                f"the relay at {path} did not answer {command} within {timeout_s:g} s; see its log"
            ) from None
        except OSError as error:
            raise ControlError(
                f"the relay at {path} hung up during {command}: {error.strerror or error}; see its log"
            ) from None
    return reply


def _read_line(connection: socket.socket, deadline: float) -> Reply:
    received = bytearray()
    while not received.endswith(b"\n"):
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        connection.settimeout(remaining_s)
        more = connection.recv(65536)
        if not more or len(received) > REPLY_BYTES:
            raise ConnectionAbortedError("no whole reply")
        received += more
    try:
        reply = json.loads(received)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise ConnectionAbortedError("the reply is not a JSON object")
    return reply

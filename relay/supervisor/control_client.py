"""The client's side of the control socket: sends one command to a running relay.

Never: imports more than the standard library and `relay.errors`, so that `relay status`
is quick.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relay.errors import ControlError

REPLY_BYTES = 16 * 1024 * 1024

Reply = dict[str, Any]


def control_path(state_dir: Path) -> Path:
    """The control socket of the relay that has this state directory."""
    return state_dir / "control.sock"


def ask(
    state_dir: Path,
    command: str,
    timeout_s: float,
    *,
    until_end: bool = False,
    on_progress: Callable[[str], object] | None = None,
    **arguments: Any,
) -> Reply:
    """Send a command and its arguments to the supervisor, and return its reply.

    With `until_end`, also wait until the supervisor ends and closes the connection.
    `timeout_s` bounds everything, or the time after a line of progress. Raises
    ControlError.
    """
    path = control_path(state_dir)
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        _connect(connection, path)
        try:
            request = {"command": command, **arguments}
            if on_progress is not None:
                request["progress"] = True
            connection.sendall(json.dumps(request).encode() + b"\n")
            received = bytearray()
            while "ok" not in (reply := _read_line(connection, deadline, received)):
                deadline = time.monotonic() + timeout_s
                if on_progress is not None:
                    on_progress(str(reply.get("progress", "")))
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
                f"the relay at {path} hung up during {command}: {error.strerror or error};"
                " see its log"
            ) from None
    return reply


def _connect(connection: socket.socket, path: Path) -> None:
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(
            f"no relay answers at {path}: it is not running, or it uses another state_dir;"
            " start it with: relay start"
        ) from None
    except PermissionError:
        raise ControlError(
            f"{path}: permission denied; run this command as the user that started the relay"
        ) from None
    except BlockingIOError:
        raise ControlError(
            f"{path}: too many clients wait for the relay, or its supervisor is stopped;"
            " see: ps -o stat,pid,comm -C relay"
        ) from None
    except OSError as error:
        raise ControlError(
            f"{path}: {error.strerror or error};"
            " if the path is longer than 107 bytes, choose a shorter relay.state_dir"
        ) from None


def _read_line(connection: socket.socket, deadline: float, received: bytearray) -> Reply:
    """The next line. `received` keeps what follows it."""
    while b"\n" not in received:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        connection.settimeout(remaining_s)
        more = connection.recv(65536)
        if not more or len(received) > REPLY_BYTES:
            raise ConnectionAbortedError("the reply is incomplete")
        received += more
    line, _, rest = received.partition(b"\n")
    received[:] = rest
    try:
        reply = json.loads(line)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise ConnectionAbortedError("the reply is not a JSON object")
    return reply

"""The supervisor's unix sockets: the control socket and the admin process's socket.

Never: replaces a file that is not a socket, or a socket on which a process listens.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from relay.errors import StartupError
from relay.files import check_creation

BACKLOG = 128
LONGEST_PATH_BYTES = 107  # sun_path of unix(7) has 108 bytes; the last one is zero
_CONTROL = "relay.state_dir"
_SOCKETS = {_CONTROL: "control socket", "admin.listen": "admin process's socket"}


def _kind(where: str) -> str:
    return _SOCKETS.get(where, "listening socket")


def _path_in(where: str) -> str:
    return where if where in _SOCKETS else f"path in listen of {where}"


def open_control(path: Path) -> socket.socket:
    """The control socket, for the supervisor's own user only.

    The caller holds the lock of the state directory. Raises StartupError.
    """
    return open_unix(_CONTROL, path, 0o177)


def open_unix(where: str, path: Path, umask: int, queue: int = BACKLOG) -> socket.socket:
    """A listening unix socket; replaces one on which no process listens.

    `where` is the configuration key, for messages. Raises StartupError.
    """
    refuse_long_path(where, path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        with contextlib.suppress(FileNotFoundError):
            _refuse_existing(where, path)
            path.unlink()
        # The umask sets the mode at bind: there is no moment at which others may
        # connect.
        before = os.umask(umask)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(queue)
    except OSError as error:
        listener.close()
        raise _cannot_make(where, path, error) from None
    except StartupError:
        listener.close()
        raise
    return listener


def check_unix(where: str, path: Path) -> None:
    """Raise the StartupError that `open_unix` would raise; change nothing."""
    refuse_long_path(where, path)
    try:
        check_creation(path.parent)
        with contextlib.suppress(FileNotFoundError):
            _refuse_existing(where, path)
    except OSError as error:
        raise _cannot_make(where, path, error) from None


def refuse_long_path(where: str, path: Path) -> None:
    """Raise StartupError when the path is too long for a unix socket."""
    length = len(os.fsencode(path))
    if length > LONGEST_PATH_BYTES:
        raise StartupError(
            f"{path}: the path of the {_kind(where)} is {length} bytes long,"
            f" and the kernel allows {LONGEST_PATH_BYTES}",
            f"choose a shorter {_path_in(where)}",
        )


def _refuse_existing(where: str, path: Path) -> None:
    """Refuse a path that must not be replaced. Raises OSError when nothing is there."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise StartupError(
            f"{path}: cannot make the {_kind(where)}: a file that is not a socket has this name",
            f"remove it, or choose another {_path_in(where)}",
        )
    # No other relay can serve the control socket: this one holds the directory's lock.
    if where != _CONTROL and _is_served(path):
        raise StartupError(
            f"{path}: another process listens on this socket",
            f"stop it, or choose another {_path_in(where)}",
        )


def _cannot_make(where: str, path: Path, error: OSError) -> StartupError:
    what = f"{path}: cannot make the {_kind(where)}"
    if isinstance(error, FileNotFoundError):
        return StartupError(
            f"{what}: the directory {path.parent} does not exist",
            f"create it, or choose another {_path_in(where)}",
        )
    if isinstance(error, NotADirectoryError):
        return StartupError(
            f"{what}: {path.parent} is not a directory", f"choose another {_path_in(where)}"
        )
    return StartupError(
        f"{what}: {error.strerror or error}",
        f"check the permissions of {where if where in _SOCKETS else path.parent}",
    )


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # EAGAIN: a process listens, and its queue is full.
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


def bound_path(listener: socket.socket) -> Path:
    """The path that a unix socket is bound to."""
    return Path(listener.getsockname())


def inode_at(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, None when it does not exist."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino

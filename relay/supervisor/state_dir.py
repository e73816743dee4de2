"""The state directory: its lock, for one supervisor, and `endpoints.json`.

Never: trusts a file that an earlier supervisor has left there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from pathlib import Path

from relay.errors import StartupError
from relay.files import check_creation
from relay.shared.messages import Endpoints
from relay.supervisor.control_client import control_path
from relay.supervisor.path_ownership import find_weak_step
from relay.supervisor.unix_sockets import check_unix, refuse_long_path

_LOCK = "relay.pid"


class StateDir:
    """A state directory that this supervisor has locked.

    It is created with mode 0755, so that scripts of other users can read
    endpoints.json.
    """

    def __init__(self, path: Path, lock_fd: int | None = None) -> None:
        """Lock it. `lock_fd` is the lock of the version before an upgrade."""
        self.path = path
        self._endpoints = path / "endpoints.json"
        self._wanted = ""  # content of endpoints.json; "" for no file
        self._stale = False
        self.was_killed = False  # the relay before: it has left its pid in the lock
        if lock_fd is not None:
            self.lock_fd = lock_fd
            self._directory = _identity(path)
            return
        try:
            _refuse_foreign(path)
            _make(path)
            _refuse_foreign(path)  # another user may have created it in the meantime
            self.lock_fd = _open_lock(path / _LOCK, os.O_CREAT)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self.lock_fd, 32).decode("ascii", "replace").strip()
            os.close(self.lock_fd)
            other = f"another relay (pid {holder})" if holder else "another relay"
            raise StartupError(
                f"{path}: {other} runs with this state directory",
                "stop it (relay stop), or choose another relay.state_dir",
            ) from None
        self.was_killed = bool(os.fstat(self.lock_fd).st_size)
        _write_pid(self.lock_fd)
        self._directory = _identity(path)
        self.remove_endpoints()

    def restore(self) -> bool:
        """Create directory and lock again if missing; return whether they were.

        Raises OSError, and StartupError when another user or another relay has them
        now.
        """
        lock = self.path / _LOCK
        if self.ours:
            return False
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = self.path.lstat()
        if (found.st_dev, found.st_ino) != self._directory and (
            not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o002
        ):
            raise StartupError(
                f"{self.path} belongs to another user now",
                "remove it, and find out what created it",
            )
        fresh = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fresh, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fresh)
            raise StartupError(
                "another relay uses it now", "stop one of the two relays by its pid"
            ) from None
        os.close(self.lock_fd)
        self.lock_fd, self._directory = fresh, _identity(self.path)
        _write_pid(fresh)
        return True

    def restore_endpoints(self) -> bool:
        """Write endpoints.json if it is missing or out of date. Raises OSError."""
        if not self._wanted or (not self._stale and self._endpoints.exists()):
            return False
        self._write()
        return True

    def write_endpoints(self, endpoints: Endpoints) -> None:
        """Replace endpoints.json; readers see the old or the new. Raises OSError."""
        self._wanted = json.dumps(endpoints) + "\n"
        self._write()

    def _write(self) -> None:
        self._stale = True
        replace_file(self._endpoints, self._wanted, 0o644)
        self._stale = False

    @property
    def ours(self) -> bool:
        """Whether the lock file at this path is still the one held here."""
        there = _identity(self.path / _LOCK)
        return there is not None and there == _identity(self.lock_fd)

    def remove(self, file: Path) -> None:
        """Remove a file, unless the directory belongs to another relay now."""
        if self.ours:
            with contextlib.suppress(OSError):
                file.unlink()

    def remove_endpoints(self) -> None:
        """Remove endpoints.json: the relay does not accept."""
        self._wanted = ""
        with contextlib.suppress(OSError):
            self._endpoints.unlink()

    def close_files(self) -> None:
        """Close the lock in a child: a new relay can start while old workers drain."""
        os.close(self.lock_fd)

    def close(self) -> None:
        """Release the directory.

        The lock file stays: removing it would race with the next supervisor.
        """
        if self.ours:
            self.remove_endpoints()
        with contextlib.suppress(OSError):
            os.ftruncate(self.lock_fd, 0)
        self.close_files()


def _identity(file: Path | int) -> tuple[int, int] | None:
    """Device and inode of a file, None when it does not exist."""
    try:
        found = os.fstat(file) if isinstance(file, int) else file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _write_pid(lock: int) -> None:
    """Write the pid into the lock file. It is only for messages: errors are ignored."""
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())


def check_state_dir(path: Path) -> None:
    """Raise the StartupError that a start here would meet. Changes nothing."""
    socket_path = control_path(path)
    refuse_long_path("relay.state_dir", socket_path)
    try:
        directory = _nearest_that_exists(path)
        _refuse_foreign(path)
        check_creation(directory)
        if directory != path:
            return  # a start creates it
        with contextlib.suppress(FileNotFoundError):
            os.close(_open_lock(path / _LOCK))
    except OSError as error:
        raise _unusable(path, error) from None
    check_unix("relay.state_dir", socket_path)


def _nearest_that_exists(path: Path) -> Path:
    """The path itself, or its nearest existing parent.

    Raises OSError when the missing directories cannot be created there.
    """
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise NotADirectoryError(None, "it is not a directory")
    except FileNotFoundError:
        if path.is_symlink():  # a dangling link: mkdir does not follow it
            raise
        return _nearest_that_exists(path.parent)
    return path


def _refuse_foreign(path: Path) -> None:
    """Refuse a directory that another user can change.

    That user could stop the relay, or redirect its files to another place.
    """
    weak = find_weak_step(path)
    if weak is not None:
        what = f"{path}: the state directory can be changed by another user: {weak}"
        raise StartupError(what, f"{weak.remedy}, or choose another relay.state_dir")


def _make(path: Path) -> None:
    for missing in reversed([path, *path.parents]):
        missing.mkdir(mode=0o755, exist_ok=True)


def _open_lock(path: Path, flags: int = 0) -> int:
    """Open the lock. Raises OSError for a file that another user may have put there."""
    descriptor = os.open(
        path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o644
    )
    found = os.fstat(descriptor)
    if (
        not stat.S_ISREG(found.st_mode)
        or found.st_nlink != 1
        or found.st_uid not in {0, os.geteuid()}
    ):
        os.close(descriptor)
        raise OSError(None, f"{path.name} in it was not created by a relay; remove it")
    return descriptor


def _unusable(path: Path, error: OSError) -> StartupError:
    remedy = "make it writable for the user that starts the relay"
    if error.errno == errno.EROFS:
        remedy = f"mount a tmpfs or a volume at {path.parent} (--tmpfs, emptyDir)"
    return StartupError(
        f"{path}: the state directory cannot be used: {error.strerror or error}",
        f"{remedy}, or choose another relay.state_dir",
    )


def replace_file(path: Path, text: str, mode: int) -> None:
    """Replace a file atomically: readers find the old or the new. Raises OSError."""
    beside = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, mode)  # whatever the umask is
            file.write(text)
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()  # the disk may be full
        raise

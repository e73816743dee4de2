"""Where access-log lines go: stdout, a file, or files named by the time, without ever holding up a worker.

Lines are kept until the destination takes them, at most KEEP_BYTES; then the oldest are dropped and counted.
Pipes, sockets and terminals are written without blocking, in whole lines of at most PIPE_BUF bytes a write, so that the lines of several workers
do not mix. A regular file gets one O_APPEND write per batch.

Never: raises for what happens at the destination, waits, or looks into a line.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from relay.errors import ConfigError, Problem
from relay.logs.access_format import LINE_BYTES, Record, Render, compile_format
from relay.logs.sink import Sink

__all__ = ["AccessLog", "Record", "check_access_log", "compile_format"]

KEEP_BYTES = 1024 * 1024
RETRY_S = 1.0
COMPLAIN_S = 60.0
STDOUT_FD = 1
_CHUNK_LINES = 64

log = logging.getLogger(__name__)


def access_path(access: str, rotate_s: int, now: float) -> str:
    """The file name of the period that `now` (Unix seconds) falls in; like rotatelogs: periods are counted from 1970, names are in UTC."""
    return time.strftime(access, time.gmtime(now - now % rotate_s)) if "%" in access else access


def check_access_log(access: str, rotate_s: int, access_format: str) -> list[Problem]:
    """What would keep this access log from being written now, by this user; empty when nothing."""
    problems: list[Problem] = []
    try:
        compile_format(access_format)
    except ConfigError as error:
        problems += error.problems
    if access in ("", "-"):
        return problems
    path = Path(access_path(access, rotate_s, time.time()))
    parent = path.parent
    if parent.is_dir() and not os.access(parent, os.X_OK, effective_ids=True):
        problems.append(
            Problem("log.access", f"this user may not enter {parent}", "change its owner or mode")
        )
    elif path.is_dir():
        problems.append(Problem("log.access", f"{path} is a directory", "name a file in it"))
    elif path.exists():
        if not os.access(path, os.W_OK, effective_ids=True):
            problems.append(
                Problem(
                    "log.access",
                    f"{path} cannot be written by this user",
                    "change its owner or mode",
                )
            )
    elif not parent.is_dir():
        problems.append(
            Problem(
                "log.access",
                f"the directory {parent} does not exist",
                "create it, owned by the relay's user",
            )
        )
    elif not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        problems.append(
            Problem(
                "log.access",
                f"no file can be created in {parent} by this user",
                "change its owner or mode",
            )
        )
    return problems


class AccessLog:
    """One process's way to the access log. Make it before privileges are dropped and before fork: stdout may not be reopened later.

    `on_drop(n)` is called when n lines are lost. `render` makes a line of a Record, `write` keeps it, `flush` hands the kept lines over.
    Raises ConfigError for an unknown format.
    """

    def __init__(
        self,
        access: str,
        rotate_s: int,
        access_format: str,
        on_drop: Callable[[int], None],
        *,
        stdout_fd: int = STDOUT_FD,
    ) -> None:
        self.enabled = access != ""
        self.render: Render = compile_format(access_format)
        self._access = access
        self._rotate_s = rotate_s
        self._on_drop = on_drop
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._torn = (
            b""  # the rest of a line whose first part was written: goes out before anything else
        )
        self._period = (float("-inf"), float("inf"))
        self._sink: Sink | None = Sink.shared(stdout_fd) if access == "-" else None
        self._retry_at = float("-inf")
        self._complain_at = float("-inf")
        self._lost = 0
        self._now = 0.0

    @property
    def pending(self) -> bool:
        """True while there are lines that no flush has handed over."""
        return bool(self._lines or self._torn)

    def write(self, line: bytes) -> None:
        """Keep one line, its newline included, for the next flush."""
        if not self.enabled:
            return
        self._lines.append(line)
        self._size += len(line)
        if self._size > KEEP_BYTES:
            self.flush(self._now or time.time())
            while self._size > KEEP_BYTES:
                self._size -= len(self._lines.popleft())
                self._lose(1)

    def flush(self, now: float) -> None:
        """Hand over as many lines as the destination takes without waiting. `now` is Unix seconds."""
        self._now = now
        if not self._lines and not self._torn:
            return
        if not self._period[0] <= now < self._period[1]:
            self.reopen()
        # The clock may be set back: a retry is never further away than RETRY_S.
        if now < self._retry_at <= now + RETRY_S:
            return
        try:
            if self._sink is None:
                self._open(now)
            self._hand_over()
        except OSError as error:
            # The lines stay, within KEEP_BYTES. Where there is no room the file stays open, so that a line cut by it can be completed.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self.reopen()
            self._retry_at = now + RETRY_S
            self._complain(now, error.strerror or str(error))
        else:
            if self._lost:
                self._complain(now, "its reader did not keep up")

    def reopen(self) -> None:
        """Close the file, so that the next flush opens it by its name again: after logrotate, or at the end of a period."""
        self._retry_at = float("-inf")
        if self._access == "-":
            return
        if self._sink is not None:
            self._sink.close()
            self._sink = None
        if self._torn:
            self._torn = b""
            self._lose(1)

    def close(self) -> None:
        """A last try to hand over what is kept; what stays is counted as lost."""
        self._retry_at = float("-inf")
        self.flush(self._now or time.time())
        left = len(self._lines) + bool(self._torn)
        self._lines.clear()
        self._size, self._torn = 0, b""
        if left:
            self._lose(left)
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def _open(self, now: float) -> None:
        if self._access == "-":
            raise OSError(errno.EBADF, "it is closed")
        if "%" in self._access:
            start = now - now % self._rotate_s
            self._period = (start, start + self._rotate_s)
        # O_NONBLOCK matters for a named pipe: without a reader its open fails instead of waiting for one.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        self._sink = Sink(
            os.open(access_path(self._access, self._rotate_s, now), flags, 0o640), poll_first=False
        )

    def _hand_over(self) -> None:
        """Write until nothing is left or the destination takes no more. Raises OSError."""
        sink = self._sink
        while sink is not None and self.pending:
            if sink.is_file:
                data = self._torn + b"".join(self._lines)
            else:
                data = self._torn
                for line in islice(self._lines, _CHUNK_LINES):
                    if data and len(data) + len(line) > LINE_BYTES:
                        break
                    data += line
            sent = sink.write(data)
            self._forget(sent)
            if sent == 0 or (sent < len(data) and not sink.is_file):
                return

    def _forget(self, sent: int) -> None:
        """Drop the first `sent` bytes from what is kept; a line of which a part is gone becomes `_torn`."""
        if sent < len(self._torn):
            self._torn = self._torn[sent:]
            return
        sent -= len(self._torn)
        self._torn = b""
        if sent == self._size:
            self._lines.clear()
            self._size = 0
            return
        while sent > 0:
            line = self._lines.popleft()
            self._size -= len(line)
            self._torn = line[sent:]
            sent -= len(line)

    def _lose(self, lines: int) -> None:
        self._lost += lines
        self._on_drop(lines)

    def _complain(self, now: float, why: str) -> None:
        """Once a minute, whatever happens: a full disk must not fill the other log too."""
        if now < self._complain_at <= now + COMPLAIN_S:
            return
        self._complain_at = now + COMPLAIN_S
        where = "stdout" if self._access == "-" else access_path(self._access, self._rotate_s, now)
        log.warning(
            "the access log %s does not take lines: %s; %d lines dropped since the last such message, up to %d KiB are kept for when it does; look at its disk, directory or reader",
            where,
            why,
            self._lost,
            KEEP_BYTES // 1024,
        )
        self._lost = 0

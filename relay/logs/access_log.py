"""Writes access-log lines to stdout, a file, or files named by the time.

Writing never delays a worker. Lines are kept until the destination accepts them. Beyond
KEEP_BYTES the oldest are dropped and counted. Pipes, sockets and terminals get whole
lines in non-blocking writes of at most PIPE_BUF bytes, so that lines of several workers
do not mix. A regular file gets one O_APPEND write per batch.

Never: raises for an error of the destination; waits; looks into a line.
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
from relay.logs.access_format import LINE_BYTES, compile_format
from relay.logs.access_record import Render
from relay.logs.sink import Sink

KEEP_BYTES = 1024 * 1024
RETRY_S = 1.0
WARN_INTERVAL_S = 60.0
STDOUT_FD = 1
_CHUNK_LINES = 64

log = logging.getLogger(__name__)


def access_path(access: str, rotate_s: int, now: float) -> str:
    """The file name for `now` (Unix seconds).

    As with rotatelogs, periods count from 1970 and the names are in UTC.
    """
    return time.strftime(access, time.gmtime(now - now % rotate_s)) if "%" in access else access


def check_access_log(access: str, rotate_s: int, access_format: str) -> list[Problem]:
    """What prevents this user from writing this access log now."""
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
    """The access log of one process.

    Create it before dropping privileges and before fork: later, reopening stdout can be
    forbidden. `render` makes a line of a Record, `write` keeps it, `flush` writes the
    kept lines. `on_drop(n)` is called when n lines are lost. Raises ConfigError for an
    unknown format.
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
        self._unfinished = b""  # the rest of a partly written line; it must go out next
        self._period = (float("-inf"), float("inf"))
        self._sink: Sink | None = Sink.shared(stdout_fd) if access == "-" else None
        self._retry_at = float("-inf")
        self._next_warning_at = float("-inf")
        self._lost = 0
        self._now = 0.0

    @property
    def pending(self) -> bool:
        """Whether there are lines that no flush has written."""
        return bool(self._lines or self._unfinished)

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
        """Write what the destination accepts without waiting; `now` is Unix seconds."""
        self._now = now
        if not self._lines and not self._unfinished:
            return
        if not self._period[0] <= now < self._period[1]:
            self.reopen()
        # If the clock was set back, do not wait longer than RETRY_S.
        if now < self._retry_at <= now + RETRY_S:
            return
        try:
            if self._sink is None:
                self._open(now)
            self._write_kept()
        except OSError as error:
            # The lines are kept, up to KEEP_BYTES. On a full disk the file stays open,
            # so that a partly written line can be completed.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self.reopen()
            self._retry_at = now + RETRY_S
            self._warn(now, error.strerror or str(error))
        else:
            if self._lost:
                self._warn(now, "its reader was too slow")

    def reopen(self) -> None:
        """Close the file. The next flush opens it by name: logrotate, new periods."""
        self._retry_at = float("-inf")
        if self._access == "-":
            return
        if self._sink is not None:
            self._sink.close()
            self._sink = None
        if self._unfinished:
            self._unfinished = b""
            self._lose(1)

    def close(self) -> None:
        """Try once more to write the kept lines; count the rest as lost."""
        self._retry_at = float("-inf")
        self.flush(self._now or time.time())
        left = len(self._lines) + bool(self._unfinished)
        self._lines.clear()
        self._size, self._unfinished = 0, b""
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
        # O_NONBLOCK is for named pipes: without a reader, open fails instead of
        # waiting.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        self._sink = Sink(
            os.open(access_path(self._access, self._rotate_s, now), flags, 0o640), poll_first=False
        )

    def _write_kept(self) -> None:
        """Write until nothing is left or no more is accepted. Raises OSError."""
        sink = self._sink
        while sink is not None and self.pending:
            if sink.is_file:
                data = self._unfinished + b"".join(self._lines)
            else:
                data = self._unfinished
                for line in islice(self._lines, _CHUNK_LINES):
                    if data and len(data) + len(line) > LINE_BYTES:
                        break
                    data += line
            sent = sink.write(data)
            self._forget(sent)
            if sent == 0 or (sent < len(data) and not sink.is_file):
                return

    def _forget(self, sent: int) -> None:
        """Remove the first `sent` bytes of the kept lines."""
        if sent < len(self._unfinished):
            self._unfinished = self._unfinished[sent:]
            return
        sent -= len(self._unfinished)
        self._unfinished = b""
        if sent == self._size:
            self._lines.clear()
            self._size = 0
            return
        while sent > 0:
            line = self._lines.popleft()
            self._size -= len(line)
            self._unfinished = line[sent:]
            sent -= len(line)

    def _lose(self, lines: int) -> None:
        self._lost += lines
        self._on_drop(lines)

    def _warn(self, now: float, why: str) -> None:
        """At most once a minute: a full disk must not fill the other log too."""
        if now < self._next_warning_at <= now + WARN_INTERVAL_S:
            return
        self._next_warning_at = now + WARN_INTERVAL_S
        where = "stdout" if self._access == "-" else access_path(self._access, self._rotate_s, now)
        log.warning(
            "the access log %s cannot be written: %s; %d lines dropped since the last such "
            "message; up to %d KiB are kept until it can be written again; check its disk, "
            "directory or reader",
            where,
            why,
            self._lost,
            KEEP_BYTES // 1024,
        )
        self._lost = 0

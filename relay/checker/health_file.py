"""What the checker knows, as a file for the page of the admin process: `health.json`, replaced in one step, at most once a second.

Its shape, instants in Unix seconds, null for never:

    {"generation": 1, "pid": 10, "written_at": 1.5,
     "names": [{"host": "b.example.com", "addresses": ["192.0.2.1"], "answered_at": 1.5, "error": ""}],
     "pool/backend": {"state": "up|down|unknown", "since": 1.5, "reason": "in words", "remedy": "", "in_a_row": 3, "last_check_at": 1.5,
                      "duration_s": 0.01, "address": "192.0.2.1:443", "tls_version": "TLSv1.3", "not_after": 1.5}, …}

No pool's name has a slash, so the last one's keys are those that have.

Never: is read by a worker; they have the scoreboard.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from relay.checker.monitor import Monitor
from relay.checker.resolver import Name
from relay.core.health import BackendHealth, HealthStatus

EVERY_S = 1.0

log = logging.getLogger(__name__)


def render_report(
    generation: int, watches: Iterable[Monitor], names: Iterable[Name]
) -> dict[str, Any]:
    """The file's contents now."""
    now, wall = time.monotonic(), time.time()

    def clock(at: float) -> float | None:
        return round(wall - (now - at), 3) if at else None

    return {
        "generation": generation,
        "pid": os.getpid(),
        "written_at": round(wall, 3),
        "names": [
            {
                "host": n.host,
                "addresses": [host for host, _ in n.known],
                "answered_at": clock(n.answered_at),
                "error": n.error,
            }
            for n in names
        ],
        **{key_of(watch): _backend(watch, clock) for watch in watches},
    }


def key_of(watch: Monitor) -> str:
    """The backend's key in the file."""
    return f"{watch.target.pool}/{watch.target.route}"


def _backend(watch: Monitor, clock: Any) -> dict[str, Any]:
    state, result = watch.state, watch.result
    found = {
        "state": state.status.value,
        "since": None if state.status is HealthStatus.UNKNOWN else clock(state.since_at),
        "reason": state.reason,
        "remedy": result.remedy if result is not None else "",
        "in_a_row": state.in_a_row,
        "last_check_at": clock(result.ended_at) if result is not None else None,
        "duration_s": round(result.ended_at - result.began_at, 6) if result is not None else None,
        "address": result.address if result is not None else "",
        "tls_version": result.tls_version if result is not None else "",
        "not_after": (result.not_after_at or None) if result is not None else None,
    }
    return {**found, **watch.inherited, "since": found["since"]} if watch.inherited else found


class HealthFile:
    """Writes the file. That it cannot is said once; the checks go on.

    `open` comes first, while the process still has the supervisor's rights: its later user may not be able to walk down to the directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory_fd = -1
        self._failed = False
        self._written_at = 0.0
        self.stale = True

    def open(self) -> None:
        """Take hold of the directory. Without it the checks go on, and only the report is missing."""
        try:
            self._directory_fd = os.open(
                self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except OSError as error:
            self._failed = True
            log.error(
                "%s: cannot be used: %s; the page shows health as it was; the checks go on",
                self._path.parent,
                error.strerror or error,
            )

    @property
    def directory_fd(self) -> int:
        """The directory, once it is open."""
        return self._directory_fd

    @property
    def due_at(self) -> float:
        """When to write next; infinity while there is nothing new."""
        return self._written_at + EVERY_S if self.stale else float("inf")

    def write(self, report: dict[str, Any]) -> None:
        """Replace the file."""
        self.stale = False
        self._written_at = time.monotonic()
        name, at = self._path.name, self._directory_fd
        beside = f"{name}.new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=at)
            descriptor = os.open(
                beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=at
            )
            with os.fdopen(descriptor, "w") as file:
                os.fchmod(descriptor, 0o644)  # whatever the umask is
                json.dump(report, file)
                file.write("\n")
            os.rename(beside, name, src_dir_fd=at, dst_dir_fd=at)
        except OSError as error:
            if not self._failed:
                log.error(
                    "%s: cannot be written: %s; the page shows health as it was; the checks go on",
                    self._path,
                    error.strerror or error,
                )
            self._failed = True
        else:
            self._failed = False

    def inherit(self, watches: Iterable[Monitor]) -> None:
        """Take over what the checker before us wrote about backends whose status the scoreboard still holds: since when, and why."""
        entries: Any
        try:
            with os.fdopen(
                os.open(
                    self._path.name,
                    os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW,
                    dir_fd=self._directory_fd,
                )
            ) as file:
                entries = json.load(file)
        except (OSError, ValueError):
            return
        for watch in watches:
            entry = entries.get(key_of(watch))
            status = watch.state.status
            if (
                not isinstance(entry, dict)
                or status is HealthStatus.UNKNOWN
                or entry.get("state") != status.value
                or not isinstance(entry.get("since"), int | float)
            ):
                continue
            watch.state = BackendHealth(
                status, time.monotonic() - max(0.0, time.time() - entry["since"])
            )
            watch.inherited = entry

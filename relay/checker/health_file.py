"""The file `health.json`: the checker's results, for admin process and supervisor.

It is replaced in one step, at most once a second. Instants are Unix seconds, null if
never:

    {"generation": 1, "pid": 10, "written_at": 1.5,
     "names": [{"host": "b.example.com", "addresses": ["192.0.2.1"],
                "answered_at": 1.5, "error": ""}],
     "lists": [{"url": "http://a.example.com/a.crl", "error": "",
                "failing_since": null, "confirmed_at": 1.5}],
     "pool/backend": {"state": "up|down|unknown", "since": 1.5, "reason": "in words",
                      "remedy": "", "in_a_row": 3, "last_check_at": 1.5,
                      "duration_s": 0.01, "address": "192.0.2.1:443",
                      "tls_version": "TLSv1.3", "not_after": 1.5}, …}

The name of a pool has no slash, so the keys with a slash are those of backends.

Never: is read by a worker; workers read the scoreboard.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from relay.checker.monitor import Monitor
from relay.checker.own_directory import read_in, replace_in
from relay.checker.resolver import HostName
from relay.core.health import BackendHealth, HealthStatus
from relay.shared.addresses import format_endpoint
from relay.shared.messages import FetchEntry, HealthEntry, HostEntry

EVERY_S = 1.0
_MOST_BYTES = 64 << 20

log = logging.getLogger(__name__)


def render_health(
    generation: int,
    monitors: Iterable[Monitor],
    names: Iterable[HostName],
    lists: Iterable[FetchEntry] = (),
) -> dict[str, Any]:
    """The contents of the file now."""
    now, wall = time.monotonic(), time.time()

    def unix_time(at: float) -> float | None:
        return round(wall - (now - at), 3) if at else None

    hosts: list[HostEntry] = [
        {
            "host": name.name,
            "addresses": [format_endpoint(each) for each in name.known],
            "answered_at": unix_time(name.answered_at),
            "error": name.error,
        }
        for name in names
    ]
    return {
        "generation": generation,
        "pid": os.getpid(),
        "written_at": round(wall, 3),
        "names": hosts,
        "lists": list(lists),
        **{key_of(monitor): _entry(monitor, unix_time) for monitor in monitors},
    }


def key_of(monitor: Monitor) -> str:
    """The backend's key in the file."""
    return f"{monitor.target.pool}/{monitor.target.route}"


def _entry(monitor: Monitor, unix_time: Callable[[float], float | None]) -> HealthEntry:
    state, result = monitor.state, monitor.result
    since = None if state.status is HealthStatus.UNKNOWN else unix_time(state.since_at)
    entry: HealthEntry = {
        "state": state.status.value,
        "since": since,
        "reason": state.reason,
        "remedy": "",
        "in_a_row": state.in_a_row,
        "last_check_at": None,
        "duration_s": None,
        "address": "",
        "tls_version": "",
        "not_after": None,
    }
    if result is not None:
        entry["remedy"] = result.remedy
        entry["last_check_at"] = unix_time(result.ended_at)
        entry["duration_s"] = round(result.ended_at - result.began_at, 6)
        entry["address"] = result.address
        entry["tls_version"] = result.tls_version
        entry["not_after"] = result.not_after_at or None
    return cast("HealthEntry", {**entry, **monitor.inherited, "since": since})


class HealthFile:
    """Writes the file. A failure to write is logged once, and the checks continue.

    Call `open` while the process still has the supervisor's rights: the user of the
    checker may not be able to open the directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory_fd = -1
        self._failed = False
        self._written_at = 0.0
        self.stale = True

    def open(self) -> None:
        """Open the directory.

        If that fails, only the file is missing; the checks run.
        """
        try:
            self._directory_fd = os.open(
                self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except OSError as error:
            self._failed = True
            log.error(
                "%s: cannot be used: %s; the admin page shows old health results; the checks go on",
                self._path.parent,
                error.strerror or error,
            )

    @property
    def directory_fd(self) -> int:
        """The directory, after `open`."""
        return self._directory_fd

    @property
    def due_at(self) -> float:
        """When to write next; infinity while there is nothing new."""
        return self._written_at + EVERY_S if self.stale else float("inf")

    def write(self, contents: dict[str, Any]) -> None:
        """Replace the file."""
        self.stale = False
        self._written_at = time.monotonic()
        text = json.dumps(contents) + "\n"
        try:
            replace_in(self._directory_fd, self._path.name, text.encode())
        except OSError as error:
            if not self._failed:
                log.error(
                    "%s: cannot be written: %s; the admin page shows old health results;"
                    " the checks go on",
                    self._path,
                    error.strerror or error,
                )
            self._failed = True
        else:
            self._failed = False

    def inherit(self, monitors: Iterable[Monitor]) -> None:
        """Use the entries of the previous checker: since when a status holds, and why.

        Only for backends whose status in the scoreboard is the one in the file.
        """
        entries: Any
        try:
            entries = json.loads(read_in(self._directory_fd, self._path.name, _MOST_BYTES))
        except (OSError, ValueError):
            return
        if not isinstance(entries, dict):
            return
        for monitor in monitors:
            entry = entries.get(key_of(monitor))
            status = monitor.state.status
            if (
                not isinstance(entry, dict)
                or status is HealthStatus.UNKNOWN
                or entry.get("state") != status.value
                or not isinstance(entry.get("since"), int | float)
            ):
                continue
            age_s = max(0.0, time.time() - entry["since"])
            monitor.state = BackendHealth(status, time.monotonic() - age_s)
            monitor.inherited = entry

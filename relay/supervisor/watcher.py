"""Keeps the watcher running: a process that looks whether files have changed.

It compares their fingerprints every `watch_s` seconds and reports which sets of files
have changed. It is a process of its own, because a file system may hang, and the
supervisor never waits. While it hangs, everything else goes on.

Never: reads a file (that is `relay.supervisor.renewal_check`).
Next: `relay.supervisor.renewals.Renewals`
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import time
from collections.abc import Callable

from relay.core.fleet_view import Rules
from relay.files import fingerprint
from relay.supervisor.children import ChildProcess
from relay.supervisor.file_watch import FileWatch
from relay.supervisor.list_sets import Watched, watched
from relay.supervisor.prepared import Prepared
from relay.supervisor.process import start_watcher
from relay.tls.certificates.file_sets import SetKey

STOP_PATIENCE_S = 2.0
_READ_BYTES = 1 << 16


class Watcher:
    """The watcher of the serving generation. `changed` has what it has reported.

    `close_in_child` closes, in the child, the files that only the supervisor needs.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        close_in_child: Callable[[], None],
        rules: Rules,
    ) -> None:
        self.changed: set[SetKey] = set()
        self._selector = selector
        self._close_in_child = close_in_child
        self._rules = rules
        self._read_fd = -1
        self._received = b""
        self._beat_at = 0.0
        self._number = 0  # the generation whose files it watches
        self._watched, self._found_for = Watched((), 0.0), 0
        self._sets: tuple[SetKey, ...] = ()
        self._child = ChildProcess(
            "the watcher",
            rules,
            STOP_PATIENCE_S,
            meanwhile="renewed files are not noticed",
            on_end=self._stop_reading,
        )

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        return self._child.pid

    def step(self, now: float, prepared: Prepared) -> None:
        """Start, replace or end it, as the serving generation needs."""
        self._child.begin_turn(now)
        if self._found_for != prepared.generation.number:
            # Once: it takes milliseconds, and the child before may end turns later.
            self._found_for = prepared.generation.number
            self._watched = watched(prepared.config)
        watch_s = self._watched.every_s
        if self._child.pid is not None:
            if self._number != prepared.generation.number:
                self._child.request_stop()
            self._child.watch(now, self._beat_at, watch_s + self._rules.hang_s)
            return
        if self._number != prepared.generation.number:
            self._number = prepared.generation.number
            self.changed.clear()
            self._child.start_afresh(now)
        if watch_s and self._child.is_due(now):
            self._child.start(now, lambda: self._launch(prepared))

    def _launch(self, prepared: Prepared) -> int:
        """Fork it; returns its pid. Raises OSError."""
        wanted = self._watched
        watch = FileWatch([each.files for each in wanted.sets], prepared.fingerprints)
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)

        def work() -> None:
            with contextlib.suppress(OSError):  # `close_in_child` may have closed it
                os.close(read_fd)
            _watch(watch, wanted.every_s, write_fd)

        try:
            pid = start_watcher(self._close_in_child, work)
        except OSError:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        os.set_blocking(read_fd, False)
        self._sets = tuple(each.key for each in wanted.sets)
        self._read_fd, self._received, self._beat_at = read_fd, b"", 0.0
        self._selector.register(read_fd, selectors.EVENT_READ, lambda _events: self._read())
        return pid

    def _read(self) -> None:
        """Take its reports: one line after each look at all files."""
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(self._read_fd)  # it has ended, and is reaped soon
            return
        self._beat_at = time.monotonic()
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self.changed.update(self._sets[number] for number in json.loads(line))

    def _stop_reading(self) -> None:
        if self._read_fd in self._selector.get_map():
            self._selector.unregister(self._read_fd)
        self.close_files()

    def close_files(self) -> None:
        """Close the pipe: at its end, and in another forked child."""
        if self._read_fd >= 0:
            os.close(self._read_fd)
            self._read_fd = -1

    def close(self) -> None:
        """End it. A child that hangs in the kernel is left behind."""
        self._child.abandon()


def _watch(watch: FileWatch, watch_s: float, write_fd: int) -> None:
    """Run in the child until the supervisor is gone or ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # the memory is shared with the supervisor
    paths = watch.paths
    while True:
        changed = watch.poll({path: fingerprint(path) for path in paths})
        try:
            os.write(write_fd, json.dumps(changed).encode() + b"\n")
        except BrokenPipeError:
            return
        time.sleep(watch_s)

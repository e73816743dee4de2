"""The relay with its real supervisor, which measures every turn of its loop.

Use it with `Gateway(body, module=TIMED)`. `turns.json` in the gateway's directory has
the turns since the file was last removed: the longest in milliseconds of CPU time
(other processes do not count), the longest in wall time, and their number.
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import time
from pathlib import Path

from relay.tls.preload import load_openssl

TIMED = ("tests.support.timed_relay",)
FILE = "turns.json"


class TimedSelector(selectors.PollSelector):
    """What the supervisor does from one `select` to the next is a turn."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._began = (time.process_time(), time.monotonic())
        self._forget()

    def _forget(self) -> None:
        self.longest_cpu_ms = self.longest_wall_ms = 0.0
        self.count = 0

    def select(self, timeout=None):
        if os.getpid() == self._pid:
            self._note()
        found = super().select(timeout)
        self._began = (time.process_time(), time.monotonic())
        return found

    def _note(self) -> None:
        if not Path(FILE).exists():
            self._forget()
        self.count += 1
        cpu_ms, wall_ms = (
            1000 * (now - then)
            for now, then in zip((time.process_time(), time.monotonic()), self._began, strict=True)
        )
        news = cpu_ms > self.longest_cpu_ms or wall_ms > self.longest_wall_ms
        self.longest_cpu_ms = max(self.longest_cpu_ms, cpu_ms)
        self.longest_wall_ms = max(self.longest_wall_ms, wall_ms)
        if news or self.count % 64 == 0 or not Path(FILE).exists():
            found = {
                "cpu_ms": self.longest_cpu_ms,
                "wall_ms": self.longest_wall_ms,
                "count": self.count,
            }
            Path(FILE + ".new").write_text(json.dumps(found))
            Path(FILE + ".new").replace(FILE)


def main() -> int:
    if sys.argv[1] == "start":
        load_openssl()
        from relay.supervisor import main, parts

        class Selectors:
            EVENT_READ = selectors.EVENT_READ
            PollSelector = TimedSelector

        parts.selectors = Selectors
        return main.run(Path(sys.argv[3]))
    from relay.cli.main import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())

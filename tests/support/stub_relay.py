"""The relay with its real supervisor, the time limits of a test, and bad workers.

`python -m tests.support.stub_relay start --config FILE`, usually through `Gateway(body,
module=STUB, env=stub(...))`. A worker reads a file `behave` in the current directory,
which is the gateway's, when it starts:

    crash      ends at once
    mute       serves, but sends no heartbeat
    late       never serves
    slow       serves after two seconds
    deaf       ignores SIGTERM
    bug        raises
    scribble   serves; every SIGUSR2 fills all memory that it can write with the next of
               SCRIBBLES

Without the file, or if it is empty, the worker is the real one. A second word makes it
apply to one generation only: `crash 2`.

With a file `clock` there, which `Clock` makes, the wall clock of all forked processes
is the real one plus the seconds in it.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from relay.tls.preload import load_openssl

STUB = ("tests.support.stub_relay",)


def stub(**rules: float) -> dict[str, str]:
    """The environment for these rules of `core.fleet_view.Rules`."""
    return {"STUB_RULES": json.dumps(rules)}


class Clock:
    """The wall clock of a relay that has not started: the real one until `shift`.

    A test can so pass the end of a certificate without waiting for it.
    """

    def __init__(self, directory: Path, shift_s: float = 0) -> None:
        self._file = directory / "clock"
        self._file.write_bytes(struct.pack("d", shift_s))

    def shift(self, shift_s: float) -> None:
        """Set it to this much after the real one."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("d", shift_s))


def use_clock(file: Path) -> None:
    """Let `time.time` follow the file; forked processes share the memory."""
    from relay.supervisor import inspection

    with file.open("r+b") as opened:
        shift_s = memoryview(mmap.mmap(opened.fileno(), 8)).cast("d")
    real = time.time
    time.time = lambda: real() + shift_s[0]
    inspection._now = lambda: datetime.fromtimestamp(time.time(), UTC)


SCRIBBLES = (-1, 2**63 - 1, -(2**63), 1, 2, 3, 4, 5, 257, 2**31, 2**32, 2**62)
"""What an attacker may write: a mode, a phase, a number of addresses, or nonsense."""


def scribble(spec) -> None:
    """Make SIGUSR2 write nonsense."""
    values = iter(SCRIBBLES)
    scoreboard = spec.scoreboard

    def write(*_: object) -> None:
        value = next(values, None)
        for memory in (
            *(segment.cells for segment in scoreboard.segments),
            scoreboard.states.cells[:4096],
        ):
            for cell in range(len(memory)):
                memory[cell] = value if value is not None else random.randrange(-(2**63), 2**63)
        Path("scribbled").write_text(str(value))

    signal.signal(signal.SIGUSR2, write)


def misbehave(spec) -> int:
    from relay.shared.scoreboard import PHASE, PHASE_SERVING
    from relay.worker.main import run_worker

    wish = Path("behave").read_text().split() if Path("behave").exists() else []
    if not wish or (len(wish) > 1 and int(wish[1]) != spec.generation.number):
        return run_worker(spec)
    cells = spec.scoreboard.row(spec.row)
    if wish[0] == "scribble":
        scribble(spec)
        return run_worker(spec)
    if wish[0] == "crash":
        return 3
    if wish[0] == "slow":
        time.sleep(2)
        return run_worker(spec)
    if wish[0] == "bug":
        raise RuntimeError("a bug\nof two lines")
    if wish[0] == "mute":
        cells[PHASE] = PHASE_SERVING
    elif wish[0] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        cells[PHASE] = PHASE_SERVING
    os.read(spec.lifeline_fd, 1)
    return 0


def main() -> int:
    if sys.argv[1] != "start":
        from relay.cli.main import main as command

        return command()
    load_openssl()
    from relay.core.fleet_view import Rules
    from relay.errors import RelayError
    from relay.supervisor.main import run

    if Path("clock").exists():
        use_clock(Path("clock"))
    try:
        return run(
            Path(sys.argv[3]),
            work=misbehave,
            rules=Rules(**json.loads(os.environ.get("STUB_RULES", "{}"))),
        )
    except RelayError as error:
        print(error, file=sys.stderr)
        return 71


if __name__ == "__main__":
    sys.exit(main())

"""The `relay` command, and `python -m relay`: gets the process ready, then `relay.cli.main` does it.

Never: imports the rest of the relay before an interrupt is quiet and descriptors 0 to 2 are open.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from relay.memory_shortage import HINT, describe_shortage, is_too_little_memory
from relay.standard_streams import reserve

EXIT_CANNOT_START = 71


def main() -> int:
    """Run the command of the process's arguments; its exit code."""
    _end_quietly()
    if sys.argv[1:2] == ["start"]:
        # What a rotation of logs or a renewal sends must not end a start. Nothing is read yet.
        for number in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    reserve()
    try:
        from relay.cli.main import main as command
    except (ImportError, MemoryError, OSError) as error:
        if not is_too_little_memory(error):
            raise
        os.write(2, f"relay: {describe_shortage(error)}; {HINT}\n".encode())
        return EXIT_CANNOT_START
    return command()


def _end_quietly() -> None:
    """Let Ctrl-C end the process by the signal, without a traceback of whatever was imported.

    Commands that have to clean up take the signal over (`relay.cli.main`).
    """
    if os.getpid() == 1:
        # The kernel drops signals that the first process of a container has no handler for.
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                signal.signal(number, _exit)
    elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _exit(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())

"""The entry point of `relay`: prepares the process, then calls `relay.cli.main`.

Never: imports the rest of relay before Ctrl-C ends it quietly and descriptors 0 to 2
are open.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType

from relay.memory_shortage import HINT, describe_shortage, is_too_little_memory
from relay.standard_streams import reserve

EXIT_CANNOT_START = 71


def main() -> int:
    """Run the command that sys.argv names, and return its exit code."""
    # Imports leave little garbage, and looking for it takes a quarter of their time.
    # `relay.cli.start` turns the collector on again. Other commands end soon, or wait.
    gc.disable()
    _end_quietly()
    if sys.argv[1:2] == ["start"] and "RELAY_HANDOVER" not in os.environ:
        # Log rotation and certificate renewal may send these signals. They must not end
        # a start, and nothing has been read yet that would have to be read again.
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
    reserve()
    try:
        return _run()
    except (ImportError, MemoryError, OSError, SystemError) as error:
        if not is_too_little_memory(error):
            raise
        os.write(2, f"relay: {describe_shortage(error)}; {HINT}\n".encode())
        return EXIT_CANNOT_START


def _run() -> int:
    if "RELAY_HANDOVER" in os.environ:
        # In an upgrade, workers run already. None may trace this process.
        from relay.sandbox.confinement import hide_memory

        hide_memory()
    if "--quiet" in sys.argv[1:]:
        from relay.cli.readiness import run_quickly

        code = run_quickly(sys.argv[1:])
        if code is not None:
            return code
    from relay.cli.main import main as command

    return command()


def _end_quietly() -> None:
    """Let Ctrl-C end the process by the signal, without a traceback.

    Commands that have something to clean up change this:
    `relay.cli.output.allow_interrupt`.
    """
    if os.getpid() == 1:
        # In a container, the kernel ignores signals for which process 1 has no handler.
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                signal.signal(number, _exit)
    elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _exit(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())

"""Makes sure that descriptors 0, 1 and 2 are open, before anything else is opened.

Otherwise a file or a socket could get one of these numbers, and log lines would be
written into it.

Never: imports anything but the standard library, so that it can run first.
"""

from __future__ import annotations

import os
import sys


def reserve() -> None:
    """Open /dev/null for each closed standard stream; child processes inherit it."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            _fill(number, mode)
    # Python sets a stream to None when its descriptor was closed at the start.
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _fill(number: int, mode: int) -> None:
    try:
        opened = os.open(os.devnull, mode)
    except OSError:
        # No /dev here, as in some containers. An open directory also keeps the number,
        # and nothing can be written to it.
        opened = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    if opened == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(opened, number)
        os.close(opened)

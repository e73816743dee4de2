"""Descriptors 0, 1 and 2 are open before anything else is.

A file or socket that got one of their numbers would be read as the terminal, or have log lines
written into it.

Never: imports anything but the standard library, so that it can run first of all.
"""

from __future__ import annotations

import os
import sys


def reserve() -> None:
    """Give each standard stream that is closed /dev/null, also for the programs we start."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            _fill(number, mode)
    # Python leaves these out when they were closed.
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
        # A root without /dev: a directory takes the number, and takes no line.
        opened = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    if opened == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(opened, number)
        os.close(opened)

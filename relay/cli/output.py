"""Writes to the operator's terminal, pipe or file.

Never: waits for long for a reader of stderr.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

import click

STDERR_PATIENCE_S = 1.0


def say(text: str, code: int = 0) -> int:
    """Write one line to stderr and return `code`, the exit code.

    File names and peers may put a newline into `text`; it stays one line. A reader of
    stderr that hangs or is gone does not keep the process from ending.
    """
    with contextlib.suppress(OSError):
        if _is_writable(sys.stderr):
            click.echo("relay: " + " ".join(text.split("\n")), err=True)
    return code


def _is_writable(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):
        return True  # not a file: a test has replaced it
    return bool(poll.poll(1000 * STDERR_PATIENCE_S))


def discard_stdout() -> None:
    """Redirect stdout to /dev/null, so that Python's flush at exit succeeds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def echo_rows(prefix: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table on a terminal, otherwise one line of key=value pairs per row."""
    if not sys.stdout.isatty():
        for row in rows:
            pairs = zip(columns, row, strict=True)
            click.echo(f"{prefix} " + " ".join(f"{column}={value}" for column, value in pairs))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(*(column.replace("_s", " (s)").replace("_", " ") for column in columns))
    for row in rows:
        table.add_row(*map(Text, row))
    print_table(table)


def print_table(table: object) -> None:
    """Write a rich table to stdout."""
    from rich.console import Console

    Console().print(table)


def allow_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, for a command that must clean up."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)

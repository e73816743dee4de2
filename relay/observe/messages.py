r"""The relay's own messages on stderr: one line each, JSON for a machine or text on a terminal.

A message goes out with one write, so that lines of several processes do not mix, and is given up when stderr takes nothing for PATIENCE_MS:
a log reader that hangs must not hang the gateway.

Never: writes a control character or a second line, whatever a peer or a traceback contains.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
import time
from types import TracebackType
from typing import Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]

PATIENCE_MS = 100

# C0, DEL, C1 (a terminal obeys both), and the line ends that only Unicode knows.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_process = "relay"


def setup(level: Level, stream: TextIO | None = None, *, process: str = "") -> None:
    """Send every logger's messages of at least `level` to `stream` (stderr). Call once, before fork; a forked process calls `name_process`.

    Text when the stream is a terminal, else JSON lines {"time", "level", "process", "message", …the call's `extra`}. Uncaught exceptions become such a line too.
    """
    if process:
        name_process(process)
    target = sys.stderr if stream is None else stream
    handler = LineHandler(target.fileno())
    handler.setFormatter(TextFormatter() if target.isatty() else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    sys.excepthook = _on_uncaught
    sys.unraisablehook = _on_unraisable


def name_process(name: str) -> None:
    """What `process` says from now on: supervisor, worker[3], checker, admin."""
    global _process
    _process = name


class LineHandler(logging.Handler):
    """Writes to a file descriptor without Python's buffers: nothing is left in them to be written twice after fork."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message; count it as lost when stderr takes nothing."""
        try:
            if self._lost:
                record.messages_lost_before = self._lost
            data = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        except Exception as error:  # noqa: BLE001  # a wrong log call must not end the process that made it
            data = f"a message of {record.pathname}:{record.lineno} could not be written: {_one_line(repr(error))}\n".encode("utf-8", "backslashreplace")
        try:
            while data:
                if not self._poll.poll(PATIENCE_MS):
                    self._lost += 1
                    return
                data = data[os.write(self._fd, data) :]
        except OSError:
            self._lost += 1
            return
        self._lost = 0


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline; pure ASCII."""
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": _process,
            "message": record.getMessage(),
            **_extra(record),
        }
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """For a person at a terminal: local time, level, process, message, key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value if isinstance(value, int | float) else repr(str(value))}" for key, value in _extra(record).items())
        return _one_line(f"{clock} {record.levelname.lower():<7} {_process}: {record.getMessage()}{fields}")


def _extra(record: logging.LogRecord) -> dict[str, object]:
    extra: dict[str, object] = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if record.exc_info:
        extra["traceback"] = logging.Formatter().formatException(record.exc_info)
    return extra


def _one_line(text: str) -> str:
    return _CONTROL.sub(lambda match: {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(match.group(), f"\\x{ord(match.group()):02x}"), text)


def _on_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical("a bug ended this process: %r; please report it with the traceback", error, exc_info=(kind, error, traceback))


def _on_unraisable(hook: sys.UnraisableHookArgs) -> None:
    error = hook.exc_value or hook.exc_type()
    logging.getLogger(__name__).error("an exception could not be raised: %r; please report it with the traceback", error, exc_info=(hook.exc_type, error, hook.exc_traceback))

r"""The relay's own messages on stderr, one line each.

A terminal gets text, any other stream gets JSON. Each message is one write, so that
lines of several processes do not mix. Messages that stderr does not accept are kept, up
to KEEP_BYTES. Beyond that the oldest are dropped and counted, and a line reports the
number once stderr accepts messages again. The loop of each process calls `flush` about
once a second.

Never: waits for a reader, except LAST_FLUSH_S when a process ends; writes a control
character or a line break inside a message, whatever a peer or a traceback contains.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Literal, TextIO

from relay.logs.sink import Sink

Level = Literal["debug", "info", "warning", "error"]

KEEP_BYTES = 256 * 1024
LAST_FLUSH_S = 0.3

# C0, DEL and C1, which control a terminal, and the Unicode line separators.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_process = "relay"


def setup(level: Level, stream: TextIO | None = None, *, process: str = "") -> None:
    """Send every logger's messages of at least `level` to `stream` (stderr).

    Call it before fork; call it again to change the level. A forked process calls
    `name_process`. A terminal gets text. Any other stream gets JSON lines with "time",
    "level", "process", "message" and the fields of the call's `extra`. An uncaught
    exception becomes such a line too.
    """
    global _handler
    if process:
        name_process(process)
    root = logging.getLogger()
    root.setLevel(level.upper())
    if _handler is None:
        target = sys.stderr if stream is None else stream
        _handler = LineHandler(target.fileno())
        _handler.setFormatter(TextFormatter() if target.isatty() else JsonFormatter())
        root.handlers[:] = [_handler]
        logging.captureWarnings(capture=True)
        sys.excepthook = _on_uncaught
        sys.unraisablehook = _on_unraisable
        os.register_at_fork(after_in_child=_handler.forget)
        atexit.register(last_flush)


def name_process(name: str) -> None:
    """Set the value of `process`: supervisor, worker[3], checker, admin."""
    global _process
    _process = name


def flush() -> None:
    """Write the kept messages that stderr accepts now."""
    if _handler is not None:
        _handler.flush()


def last_flush() -> None:
    """When a process ends: give stderr LAST_FLUSH_S to accept the kept messages."""
    if _handler is not None:
        _handler.last_flush(LAST_FLUSH_S)


def dropped() -> int:
    """How many messages of this process were dropped so far."""
    return _handler.dropped if _handler is not None else 0


def count_dropped(count: Callable[[int], None]) -> None:
    """Call `count(n)` whenever n messages are dropped, and now for earlier ones."""
    if _handler is not None:
        _handler.count_dropped(count)


class LineHandler(logging.Handler):
    """Writes to a file descriptor, without waiting and without Python's buffers."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._sink = Sink.shared(fd)
        self.forget()

    def forget(self) -> None:
        """Reset. In a forked process the kept messages are the parent's to write."""
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._unfinished = b""  # the rest of a partly written line
        self._lost = 0  # dropped, and not reported by a line yet
        self._uncounted = 0
        self._failed = False  # the last write raised: no reader, or a full disk
        self.dropped = 0
        self._count: Callable[[int], None] | None = None

    def count_dropped(self, count: Callable[[int], None]) -> None:
        """Set the function that counts dropped messages."""
        self._count = count
        self._lose(0)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, or keep it for later."""
        try:
            data = _encoded(self.format(record))
        except Exception as error:  # noqa: BLE001  # a bad log call must not end its process
            data = _encoded(
                f"the message of {record.pathname}:{record.lineno} cannot be formatted: "
                f"{_one_line(repr(error))}"
            )
        self._lines.append(data)
        self._size += len(data)
        self.flush()
        while self._size > KEEP_BYTES:
            self._size -= len(self._lines.popleft())
            self._lose(1)

    def flush(self) -> None:
        """Write the kept messages that are accepted without waiting."""
        self._failed = False
        try:
            while self._lines or self._unfinished or self._lost:
                if not self._write_one():
                    return
        except OSError:
            self._failed = True

    def last_flush(self, timeout_s: float) -> None:
        """Write the kept messages, waiting at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        self.flush()
        while self._sink is not None and (self._lines or self._unfinished or self._lost):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._failed:
                return
            self._sink.wait(left_s)
            self.flush()
            time.sleep(0.001)  # poll may report room for less than a line

    def _write_one(self) -> bool:
        """Write one line, or its rest; False if not all of it. Raises OSError."""
        if self._sink is None:
            return False
        if self._unfinished:
            data = self._unfinished
            sent = self._sink.write(data)
        elif self._lost:
            data = self._lost_line()
            sent = self._sink.write(data)
            if sent:
                self._lost = 0
        else:
            data = self._lines[0]
            sent = self._sink.write(data)
            if sent:
                self._lines.popleft()
                self._size -= len(data)
        if sent:
            self._unfinished = data[sent:]
        return sent == len(data)

    def _lost_line(self) -> bytes:
        text = (
            f"{self._lost} messages of this process were dropped here: stderr did not accept them; "
            "check the program that reads stderr; see relay_messages_dropped_total"
        )
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
        record.messages_lost_before = self._lost
        return _encoded(self.format(record))

    def _lose(self, lines: int) -> None:
        self._lost += lines
        self._uncounted += lines
        self.dropped += lines
        if self._count is not None and self._uncounted:
            uncounted, self._uncounted = self._uncounted, 0
            self._count(uncounted)


def _encoded(line: str) -> bytes:
    return (line + "\n").encode("utf-8", "backslashreplace")


_handler: LineHandler | None = None


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline; pure ASCII."""
        line = {
            "time": (
                time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
                + f".{int(record.msecs):03d}Z"
            ),
            "level": record.levelname.lower(),
            "process": _process,
            "message": record.getMessage(),
            **_extra(record),
        }
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Text for a terminal: local time, level, process, message, key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(
            f" {key}={value if isinstance(value, int | float) else repr(str(value))}"
            for key, value in _extra(record).items()
        )
        return _one_line(
            f"{clock} {record.levelname.lower():<7} {_process}: {record.getMessage()}{fields}"
        )


def _extra(record: logging.LogRecord) -> dict[str, object]:
    extra: dict[str, object] = {
        key: value for key, value in vars(record).items() if key not in _STANDARD
    }
    if record.exc_info:
        extra["traceback"] = logging.Formatter().formatException(record.exc_info)
    return extra


def _one_line(text: str) -> str:
    return _CONTROL.sub(
        lambda match: {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(
            match.group(), f"\\x{ord(match.group()):02x}"
        ),
        text,
    )


def _on_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical(
        "a bug ended this process: %r; please report it with the traceback",
        error,
        exc_info=(kind, error, traceback),
    )
    last_flush()


def _on_unraisable(hook: sys.UnraisableHookArgs) -> None:
    error = hook.exc_value or hook.exc_type()
    logging.getLogger(__name__).error(
        "an exception was raised where Python ignores it: %r; please report it with the traceback",
        error,
        exc_info=(hook.exc_type, error, hook.exc_traceback),
    )

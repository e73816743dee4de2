r"""The relay's own messages on stderr: one line each, JSON for a machine or text on a terminal.

A message goes out with one write, so that lines of several processes do not mix. What stderr does
not take is kept, at most KEEP_BYTES; then the oldest messages are dropped and counted, and a line
says so when stderr takes messages again. Each process's loop calls `flush` once a second or so.

Never: waits for a reader, but for LAST_CHANCE_S when a process ends; writes a control character or
a second line, whatever a peer or a traceback contains.
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
LAST_CHANCE_S = 0.3

# C0, DEL, C1 (a terminal obeys both), and the line ends that only Unicode knows.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_process = "relay"


def setup(level: Level, stream: TextIO | None = None, *, process: str = "") -> None:
    """Send every logger's messages of at least `level` to `stream` (stderr).

    Call it before fork, and again for another level; a forked process calls `name_process`. Text
    when the stream is a terminal, else JSON lines {"time", "level", "process", "message", …the
    call's `extra`}. Uncaught exceptions become such a line too.
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
        atexit.register(last_chance)


def name_process(name: str) -> None:
    """What `process` says from now on: supervisor, worker[3], checker, admin."""
    global _process
    _process = name


def flush() -> None:
    """Hand over what is kept, as far as stderr takes it now."""
    if _handler is not None:
        _handler.flush()


def last_chance() -> None:
    """At the end of a process: wait for stderr a moment, not for a reader that hangs."""
    if _handler is not None:
        _handler.last_chance(LAST_CHANCE_S)


def dropped() -> int:
    """How many messages of this process were dropped so far."""
    return _handler.dropped if _handler is not None else 0


def count_dropped(count: Callable[[int], None]) -> None:
    """Call `count(n)` when n messages of this process are dropped, and now for earlier ones."""
    if _handler is not None:
        _handler.count_dropped(count)


class LineHandler(logging.Handler):
    """Writes to a file descriptor without Python's buffers, and without waiting."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._sink = Sink.shared(fd)
        self.forget()

    def forget(self) -> None:
        """Start anew: in a forked process, what is kept is the parent's to write."""
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._torn = b""  # the rest of a line whose first part was written
        self._lost = 0  # and no line has said so yet
        self._uncounted = 0
        self._hopeless = False
        self.dropped = 0
        self._count: Callable[[int], None] | None = None

    def count_dropped(self, count: Callable[[int], None]) -> None:
        """Who counts from now on."""
        self._count = count
        self._lose(0)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, or keep it for later."""
        try:
            data = _encoded(self.format(record))
        except Exception as error:  # noqa: BLE001  # a wrong log call must not end the process that made it
            data = _encoded(
                f"a message of {record.pathname}:{record.lineno} could not be written: "
                f"{_one_line(repr(error))}"
            )
        self._lines.append(data)
        self._size += len(data)
        self.flush()
        while self._size > KEEP_BYTES:
            self._size -= len(self._lines.popleft())
            self._lose(1)

    def flush(self) -> None:
        """Hand over what is kept, as far as it is taken without waiting."""
        self._hopeless = False
        try:
            while self._lines or self._torn or self._lost:
                if not self._write_one():
                    return
        except OSError:
            self._hopeless = True  # nobody reads, or the disk is full

    def last_chance(self, patience_s: float) -> None:
        """Hand over what is kept while the time lasts."""
        deadline = time.monotonic() + patience_s
        self.flush()
        while self._sink is not None and (self._lines or self._torn or self._lost):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._hopeless:
                return
            self._sink.wait(left_s)
            self.flush()
            time.sleep(0.001)  # "there is room" may mean less than a line

    def _write_one(self) -> bool:
        """Write one line, or the rest of one. False when it was not taken. Raises OSError."""
        if self._sink is None:
            return False
        what = "line" if self._lines else ""
        if self._torn:
            what, data = "torn", self._torn
        elif self._lost:
            what, data = "lost", self._told_lost()
        else:
            data = self._lines[0]
        sent = self._sink.write(data)
        if sent:
            self._torn = data[sent:]
            if what == "lost":
                self._lost = 0
            elif what == "line":
                self._lines.popleft()
                self._size -= len(data)
        return sent == len(data)

    def _told_lost(self) -> bytes:
        what = f"{self._lost} messages of this process were dropped here: stderr did not take them"
        why = "look at what reads stderr; see relay_messages_dropped_total"
        level = logging.WARNING
        record = logging.LogRecord(__name__, level, __file__, 0, f"{what}; {why}", None, None)
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
    last_chance()


def _on_unraisable(hook: sys.UnraisableHookArgs) -> None:
    error = hook.exc_value or hook.exc_type()
    logging.getLogger(__name__).error(
        "an exception could not be raised: %r; please report it with the traceback",
        error,
        exc_info=(hook.exc_type, error, hook.exc_traceback),
    )

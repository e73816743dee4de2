"""The relay's own messages: always one line, from processes set up as relay's are."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import subprocess
import sys
import time

import pytest

SETUP = """\
import logging, os, sys
from relay.logs import messages
messages.setup('info', process='supervisor')
log = logging.getLogger('relay.x')
"""


def run(code, check=True):
    return subprocess.run(
        [sys.executable, "-c", SETUP + code], capture_output=True, timeout=30, check=check
    )


def json_lines(code, check=True):
    return [json.loads(line) for line in run(code, check).stderr.decode("ascii").splitlines()]


def run_on_terminal(code):
    """The output on a terminal."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", SETUP + code], stderr=theirs)
    os.close(theirs)
    received = b""
    try:
        while part := os.read(ours, 4096):
            received += part
    except OSError:  # EIO: Linux's end of file of a terminal
        assert child.wait(30) == 0
    os.close(ours)
    return received.decode()


def test_a_message_is_a_json_line_with_its_extra_fields():
    (line,) = json_lines("log.info('worker %d ended', 3, extra={'slot': 3, 'status': -9})")
    assert len(line.pop("time")) == len("2026-01-01T00:00:00.000Z")
    assert line == {
        "level": "info",
        "process": "supervisor",
        "message": "worker 3 ended",
        "slot": 3,
        "status": -9,
    }


def test_what_is_below_the_level_is_not_written():
    assert json_lines("log.debug('no')") == []


def test_a_forked_worker_says_its_own_name_and_nothing_twice():
    lines = json_lines(
        "log.info('before')\n"
        "if os.fork() == 0:\n    messages.name_process('worker[0]')\n"
        "    log.warning('mine')\n    os._exit(0)\n"
        "os.wait()\nlog.info('after')",
    )
    assert [(line["process"], line["message"]) for line in lines] == [
        ("supervisor", "before"),
        ("worker[0]", "mine"),
        ("supervisor", "after"),
    ]


def test_a_name_with_newlines_and_terminal_commands_stays_in_its_line():
    evil = "a\nb\r\x1b[2J\x85\u2028"
    (line,) = json_lines(f"log.warning('sni %s', {evil!r}, extra={{'sni': {evil!r}}})")
    assert line["message"] == f"sni {evil}"
    assert line["sni"] == evil
    text = run_on_terminal(f"log.warning('sni %s', {evil!r}, extra={{'sni': {evil!r}}})")
    assert text.count("\n") == 1
    assert text.rstrip("\r\n").isprintable()
    assert r"sni a\nb\r\x1b[2J\x85\x2028" in text


def test_on_a_terminal_a_person_reads_text():
    text = run_on_terminal("log.info('serving', extra={'workers': 2, 'listener': 'https'})")
    assert text.rstrip("\r\n")[9:] == "info    supervisor: serving workers=2 listener='https'"


def test_a_traceback_is_one_field():
    (line,) = json_lines("try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('odd')")
    assert line["message"] == "odd"
    assert line["traceback"].endswith("ZeroDivisionError: division by zero")
    assert "\n" in line["traceback"]


def test_an_uncaught_exception_is_one_line():
    (line,) = json_lines("raise ValueError('x\\ny')", check=False)
    assert line["level"] == "critical"
    assert "ValueError" in line["message"]
    assert "ValueError" in line["traceback"]


def test_an_exception_that_cannot_be_raised_is_one_line():
    (line,) = json_lines(
        "class Odd:\n    def __del__(self):\n        raise ValueError('odd')\nOdd()"
    )
    assert line["level"] == "error"
    assert "ValueError('odd')" in line["message"]


def test_a_wrong_log_call_ends_nothing_and_is_told():
    done = run("log.info('%d', 'x')\nlog.info('next')")
    first, second = done.stderr.decode().splitlines()
    assert "cannot be formatted" in first
    assert json.loads(second)["message"] == "next"


def test_a_warning_of_python_is_a_message():
    (line,) = json_lines("import warnings\nwarnings.warn('old')")
    assert (line["level"], "UserWarning: old" in line["message"]) == ("warning", True)


FILL = b"x" * 4096


def a_full_pipe():
    """A pipe of one page that is full; its two ends."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, FILL)
    return read, write


@contextlib.contextmanager
def child_with(write, code):
    child = subprocess.Popen(
        [sys.executable, "-c", SETUP + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=write,
    )
    os.close(write)
    with child:  # which closes its pipes and waits for it
        yield child


def test_an_unread_stderr_delays_nothing_and_messages_are_kept():
    """Each message once waited 100 ms and was then lost."""
    read, write = a_full_pipe()
    with child_with(
        write,
        "import time\nstarted = time.monotonic()\n"
        "for number in range(100): log.info('%d', number)\n"
        "print(time.monotonic() - started, flush=True)\n"
        "sys.stdin.read()\nmessages.flush()\nlog.info('last')",
    ) as child:
        assert float(child.stdout.readline()) < 1  # 0.01 s on a quiet machine
        assert os.read(read, 4096) == FILL
        child.stdin.close()
        with os.fdopen(read, "rb") as file:
            lines = [json.loads(line)["message"] for line in file]
        assert child.wait(10) == 0
        assert lines == [*map(str, range(100)), "last"]


def test_what_is_dropped_is_counted_and_told_where_it_is_missing():
    read, write = a_full_pipe()
    with child_with(
        write,
        "lost = []\nmessages.count_dropped(lost.append)\n"
        "for number in range(400): log.info('%d', number, extra={'more': 'x' * 1000})\n"
        "print(sum(lost), messages.dropped(), flush=True)\nsys.stdin.read()\nmessages.flush()",
    ) as child:
        counted, dropped = map(int, child.stdout.readline().split())
        assert counted == dropped > 100
        assert os.read(read, 4096) == FILL
        child.stdin.close()
        with os.fdopen(read, "rb") as file:
            told, *lines = [json.loads(line) for line in file]
        assert child.wait(10) == 0
        assert (told["level"], told["messages_lost_before"]) == ("warning", dropped)
        assert "relay_messages_dropped_total" in told["message"]
        assert [line["message"] for line in lines] == [
            str(number) for number in range(dropped, 400)
        ]


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise ValueError", "pass"])
def test_a_hanging_reader_does_not_delay_the_end_of_a_process(end):
    read, write = a_full_pipe()
    started = time.monotonic()
    with child_with(write, f"log.info('a')\n{end}") as child:
        assert child.wait(20) == {"sys.exit(3)": 3, "raise ValueError": 1, "pass": 0}[end]
        assert time.monotonic() - started < 10
        assert os.read(read, 8192) == FILL
        os.close(read)


def test_a_stderr_whose_reader_is_gone_ends_nothing():
    read, write = os.pipe()
    os.close(read)
    with child_with(write, "for _ in range(3): log.info('a')\nprint('on', flush=True)") as child:
        assert child.communicate(timeout=20)[0] == b"on\n"
        assert child.returncode == 0


def test_a_forked_process_does_not_repeat_what_its_parent_keeps():
    read, write = a_full_pipe()
    with child_with(
        write,
        "log.info('parent')\n"
        "if os.fork() == 0:\n    messages.name_process('child')\n    log.info('child')\n"
        "    print(flush=True)\n    sys.stdin.read()\n    messages.last_flush()\n    os._exit(0)\n"
        "os.wait()\n",
    ) as child:
        assert child.stdout.readline() == b"\n"
        assert os.read(read, 4096) == FILL
        child.stdin.close()
        with os.fdopen(read, "rb") as file:
            lines = [json.loads(line)["message"] for line in file]
        assert child.wait(10) == 0
        assert sorted(lines) == ["child", "parent"]

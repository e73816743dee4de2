"""The relay's own messages: always one line, written by a process of its own as the relay's processes do."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
import time

SETUP = "import logging, os, sys\nfrom relay.observe import messages\nmessages.setup('info', process='supervisor')\nlog = logging.getLogger('relay.x')\n"


def run(code, check=True):
    return subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, timeout=30, check=check)


def json_lines(code, check=True):
    return [json.loads(line) for line in run(code, check).stderr.decode("ascii").splitlines()]


def run_on_terminal(code):
    """What a terminal is sent."""
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
    assert line == {"level": "info", "process": "supervisor", "message": "worker 3 ended", "slot": 3, "status": -9}


def test_what_is_below_the_level_is_not_written():
    assert json_lines("log.debug('no')") == []


def test_a_forked_worker_says_its_own_name_and_nothing_twice():
    lines = json_lines(
        "log.info('before')\n"
        "if os.fork() == 0:\n    messages.name_process('worker[0]')\n    log.warning('mine')\n    os._exit(0)\n"
        "os.wait()\nlog.info('after')",
    )
    assert [(line["process"], line["message"]) for line in lines] == [("supervisor", "before"), ("worker[0]", "mine"), ("supervisor", "after")]


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
    (line,) = json_lines("class Odd:\n    def __del__(self):\n        raise ValueError('odd')\nOdd()")
    assert line["level"] == "error"
    assert "ValueError('odd')" in line["message"]


def test_a_wrong_log_call_ends_nothing_and_is_told():
    done = run("log.info('%d', 'x')\nlog.info('next')")
    first, second = done.stderr.decode().splitlines()
    assert "could not be written" in first
    assert json.loads(second)["message"] == "next"


def test_a_warning_of_python_is_a_message():
    (line,) = json_lines("import warnings\nwarnings.warn('old')")
    assert (line["level"], "UserWarning: old" in line["message"]) == ("warning", True)


def test_a_stderr_nobody_reads_holds_nothing_up_and_the_loss_is_told():
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b"x" * 4096)
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", SETUP + "log.info('a')\nlog.info('b')\nprint(flush=True)\ninput()\nlog.info('c')"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write)
    os.close(write)
    assert child.stdout.readline() == b"\n"
    assert time.monotonic() - started < 10
    assert os.read(read, 4096) == b"x" * 4096
    child.communicate(b"\n", timeout=10)
    (line,) = os.read(read, 65_536).splitlines()
    os.close(read)
    decoded = json.loads(line)
    assert (child.returncode, decoded["message"], decoded["messages_lost_before"]) == (0, "c", 2)

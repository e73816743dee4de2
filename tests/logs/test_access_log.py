"""Lines reach the file whole and in order, or are counted; no worker waits."""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import threading
import time

import pytest

from relay.logs.access_log import KEEP_BYTES, AccessLog, check_access_log

DAY = 86_400


class Count:
    def __init__(self):
        self.lost = 0

    def __call__(self, lines):
        self.lost += lines


@pytest.fixture
def lost():
    return Count()


@pytest.fixture
def pipe():
    read, write = os.pipe()
    os.set_inheritable(write, True)
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            continue


def read_until_end(fd):
    parts = []
    while select.select([fd], [], [], 10)[0]:
        part = os.read(fd, 65_536)
        if not part:
            return b"".join(parts)
        parts.append(part)
    raise AssertionError("the other end stays open")


def line(number, size=100):
    return b"%08d " % number + b"x" * (size - 10) + b"\n"


def test_off_costs_nothing_and_keeps_nothing(lost):
    log = AccessLog("", DAY, "json", lost)
    log.write(line(1))
    log.flush(0.0)
    log.close()
    assert (log.enabled, log.pending, lost.lost) == (False, False, 0)


def test_a_batch_arrives_in_the_file_at_its_flush(tmp_path, lost):
    path = tmp_path / "access.log"
    log = AccessLog(str(path), DAY, "json", lost)
    log.write(line(1))
    log.write(line(2))
    assert log.pending
    log.flush(100.0)
    assert not log.pending
    assert path.read_bytes() == line(1) + line(2)
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0
    log.close()


def test_two_workers_append_to_one_file(tmp_path, lost):
    path = tmp_path / "access.log"
    first, second = (AccessLog(str(path), DAY, "json", lost) for _ in range(2))
    for number, log in enumerate([first, second, first]):
        log.write(line(number))
        log.flush(100.0)
    assert path.read_bytes() == line(0) + line(1) + line(2)
    first.close()
    second.close()


def test_files_are_named_by_the_start_of_their_period_in_utc(tmp_path, lost):
    log = AccessLog(str(tmp_path / "access_%Y%m%d_%H.log"), 43_200, "json", lost)
    noon = 1_700_000_000 - 1_700_000_000 % DAY + 43_200  # 2023-11-14
    for number, now in enumerate([noon - 0.001, noon, noon + 43_199, noon + 43_200]):
        log.write(line(number))
        log.flush(now)
    log.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "access_20231114_00.log": line(0),
        "access_20231114_12.log": line(1) + line(2),
        "access_20231115_00.log": line(3),
    }


def test_after_a_rename_and_reopen_lines_go_to_the_new_file(tmp_path, lost):
    path, old = tmp_path / "access.log", tmp_path / "access.log.1"
    log = AccessLog(str(path), DAY, "json", lost)
    log.write(line(1))
    log.flush(100.0)
    path.rename(old)
    log.write(line(2))
    log.reopen()
    log.flush(101.0)
    log.close()
    assert (old.read_bytes(), path.read_bytes()) == (line(1), line(2))


def test_a_directory_that_appears_later_gets_the_lines_that_waited(tmp_path, lost, caplog):
    path = tmp_path / "later" / "access.log"
    log = AccessLog(str(path), DAY, "json", lost)
    with caplog.at_level(logging.WARNING):
        for second in range(30):
            log.write(line(second))
            log.flush(100.0 + second)
    path.parent.mkdir()
    log.flush(130.5)
    log.close()
    assert path.read_bytes() == b"".join(map(line, range(30)))
    assert lost.lost == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No such file or directory" in caplog.text


def test_a_full_disk_costs_the_oldest_lines_and_one_message_a_minute(lost, caplog):
    log = AccessLog("/dev/full", DAY, "json", lost)
    with caplog.at_level(logging.WARNING):
        for number in range(20_000):
            log.write(line(number))
            if number % 100 == 0:
                log.flush(100.0 + number / 100)  # 200 seconds
    assert lost.lost == 20_000 - KEEP_BYTES // 100
    log.close()
    assert lost.lost == 20_000
    messages = [record.getMessage() for record in caplog.records]
    assert 1 <= len(messages) <= 6
    assert "/dev/full" in messages[0]
    assert "No space left on device" in messages[0]


def test_a_line_cut_by_a_full_disk_is_completed_later(tmp_path, lost):
    resource = pytest.importorskip("resource")
    path = tmp_path / "access.log"
    log = AccessLog(str(path), DAY, "json", lost)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number in range(10):
        log.write(line(number))
    try:
        # The kernel answers a write across this limit as it does at the end of a disk:
        # a part is taken, then none.
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, before[1]))
        log.flush(100.0)
        written = path.read_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.flush(102.0)
    log.close()
    assert len(written) == 250
    assert path.read_bytes() == b"".join(map(line, range(10)))
    assert lost.lost == 0


def test_every_line_to_an_unread_pipe_is_kept_or_counted(pipe, lost):
    read, write = pipe
    log = AccessLog("-", DAY, "json", lost, stdout_fd=write)
    started = time.monotonic()
    for number in range(30_000):
        log.write(line(number))
        if number % 50 == 0:
            log.flush(100.0)
    assert time.monotonic() - started < 10
    assert lost.lost > 0
    os.set_blocking(read, False)
    received = b""
    for _ in range(1000):
        log.flush(200.0)
        try:
            received += os.read(read, 65_536)
        except BlockingIOError:
            break
    lines = received.splitlines(keepends=True)
    numbers = [int(entry.split()[0]) for entry in lines]
    assert [line(number) for number in numbers] == lines
    assert numbers == sorted(set(numbers))
    assert len(numbers) + lost.lost == 30_000
    assert numbers[-1] == 29_999
    log.close()


def test_stdout_stays_blocking_for_the_others_that_share_it(pipe, lost):
    _, write = pipe
    log = AccessLog("-", DAY, "json", lost, stdout_fd=write)
    log.write(line(1))
    log.flush(100.0)
    log.close()
    assert os.get_blocking(write)
    assert os.write(write, b"still open") == 10


def test_lines_of_several_workers_do_not_mix_in_one_pipe(pipe, lost):
    read, write = pipe
    log = AccessLog("-", DAY, "json", lost, stdout_fd=write)
    workers = []
    for worker in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for number in range(500):
                    log.write(
                        b"%d:%d:" % (worker, number)
                        + bytes([97 + worker]) * (100 + 7 * number % 3000)
                        + b"\n"
                    )
                    log.flush(100.0)
                while log.pending:
                    select.select([], [write], [], 10)
                    log.flush(100.0)
                status = min(lost.lost, 1)
            finally:
                os._exit(status)
        workers.append(pid)
    log.close()
    os.close(write)
    received = read_until_end(read)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers] == [0] * 4
    seen = dict.fromkeys(range(4), 0)
    for entry in received.splitlines():
        worker, number, text = entry.split(b":")
        assert int(number) == seen[int(worker)]
        assert text == bytes([97 + int(worker)]) * (100 + 7 * int(number) % 3000)
        seen[int(worker)] += 1
    assert seen == dict.fromkeys(range(4), 500)


def test_a_socket_as_systemd_gives_it_is_written_whole(lost):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = AccessLog("-", DAY, "json", lost, stdout_fd=ours.fileno())
        received = []
        reader = threading.Thread(target=lambda: received.append(read_until_end(theirs.fileno())))
        for number in range(8_000):  # more than the socket's buffer
            log.write(line(number))
            log.flush(100.0)
        reader.start()
        while log.pending:
            select.select([], [ours], [], 10)
            log.flush(100.0)
        log.close()
        ours.shutdown(socket.SHUT_WR)
        reader.join(10)
    assert received == [b"".join(map(line, range(8_000)))]
    assert lost.lost == 0


def test_a_reader_that_went_away_is_survived_and_said(pipe, lost, caplog):
    read, write = pipe
    log = AccessLog("-", DAY, "json", lost, stdout_fd=write)
    os.close(read)
    with caplog.at_level(logging.WARNING):
        log.write(line(1))
        log.flush(100.0)
    log.close()
    assert lost.lost == 1
    assert "Broken pipe" in caplog.text


def test_a_closed_stdout_is_survived_and_said(pipe, lost, caplog):
    _, write = pipe
    os.close(write)
    log = AccessLog("-", DAY, "json", lost, stdout_fd=write)
    log.write(line(1))
    with caplog.at_level(logging.WARNING):
        log.flush(100.0)
    log.close()
    assert lost.lost == 1
    assert "closed" in caplog.text


def test_a_named_pipe_without_a_reader_is_not_waited_for(tmp_path, lost):
    path = tmp_path / "access.fifo"
    os.mkfifo(path)
    log = AccessLog(str(path), DAY, "json", lost)
    log.write(line(1))
    log.flush(100.0)
    assert log.pending
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log.flush(102.0)
    assert os.read(reader, 1000) == line(1)
    os.close(reader)
    log.close()


def test_a_clock_that_is_set_back_does_not_silence_the_log(tmp_path, lost):
    log = AccessLog(str(tmp_path / "none" / "a_%Y.log"), DAY, "json", lost)
    log.write(line(1))
    log.flush(2_000_000_000.0)
    (tmp_path / "none").mkdir()
    log.flush(1_000_000_000.0)
    log.close()
    assert (tmp_path / "none" / "a_2001.log").read_bytes() == line(1)


def test_the_check_names_what_would_keep_the_log_from_being_written(tmp_path):
    (tmp_path / "there.log").touch()
    assert check_access_log("", 1, "json") == []
    assert check_access_log("-", 1, "json") == []
    assert check_access_log(str(tmp_path / "there.log"), 1, "common") == []
    assert check_access_log(str(tmp_path / "new_%Y.log"), 1, "combined") == []
    assert [problem.what for problem in check_access_log(str(tmp_path), 1, "json")] == [
        f"{tmp_path} is a directory"
    ]
    missing = check_access_log(str(tmp_path / "no" / "access.log"), 1, "%Z")
    assert [problem.where for problem in missing] == ["log.access_format", "log.access"]
    assert missing[1].what == f"the directory {tmp_path / 'no'} does not exist"

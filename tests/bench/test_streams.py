"""The run that compares every byte: it ends well, and notices what is wrong."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench import wire
from bench.libssl import LibsslError
from bench.stream_peers import End, plan

SMALL = ("--gigabytes", "0.02", "--connections", "4", "--megabytes", "2")


def test_a_small_run_compares_all_it_was_asked_for():
    command = [sys.executable, "-m", "bench.streams", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERROR" not in done.stdout
    last = done.stdout.splitlines()[-1]
    assert "key updates" in last
    assert "half-closes" in last


def test_both_ends_have_the_same_plan_and_some_sides_send_little():
    plans = [plan(number, 1_000_000) for number in range(200)]
    assert plans == [plan(number, 1_000_000) for number in range(200)]
    sizes = [size for each in plans for size in each.sizes]
    assert min(sizes) < 1000
    assert 500_000 < max(sizes) <= 1_000_008


@pytest.mark.parametrize("wrong", [0, 999])
def test_a_wrong_byte_is_noticed(wrong):
    end = SimpleNamespace(
        read_offset=65_000, read_left=5000, until_stall=0, peer=SimpleNamespace(compared=0)
    )
    data = bytearray(wire.pattern_at(65_000, 1000))
    End.compare(end, memoryview(data))
    assert (end.read_offset, end.peer.compared) == (66_000, 1000)
    data = bytearray(wire.pattern_at(66_000, 1000))
    data[wrong] ^= 1
    with pytest.raises(LibsslError, match="wrong bytes"):
        End.compare(end, memoryview(data))

"""When a hello that comes in pieces is parsed again: never too late, and seldom."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.hello import MAX_BYTES, MAX_HELLO_BYTES, NEED_DATA, parse_hello
from relay.core.partial_hello import PartialHello
from tests.support.hellos import HELLOS, handshake, hello, records

SIZES = {"one": [], "two": [3], "tiny": [1] * 2_000, "some": [1, 2, 100, 1, 1, 40, 500]}
EMPTY = b"\x16\x03\x01\x00\x00"


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", HELLOS)
def test_a_look_says_what_reading_would_say_at_any_byte(name, sizes):
    data = records(HELLOS[name][5:], sizes)
    arriving, wanted = PartialHello(), 0
    for size in sorted({*range(0, len(data) + 1, 1 + len(data) // 400), len(data) - 1, len(data)}):
        ready = arriving.look(data[:size])
        assert ready is (parse_hello(data[:size]) is not NEED_DATA), size
        if not ready:
            assert wanted <= arriving.wanted <= len(data)
            assert arriving.wanted > size
            wanted = arriving.wanted


def test_a_reader_that_waits_for_wanted_bytes_looks_seldom():
    """2,000 bytes in records of one byte are the worst case."""
    message = handshake(bytes(1_990))
    data, looks, size = records(message, [1] * 3_000), 0, 1
    arriving = PartialHello()
    while not arriving.look(data[:size]):
        looks += 1
        size = arriving.wanted
    assert size == len(data)
    assert looks < 60


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 3), st.randoms())
def test_the_parser_sees_any_bytes_that_cannot_be_a_hello(start, empties, chance):
    begin = EMPTY * empties + chance.choice(
        [b"", b"\x16", b"\x16\x03\x01\x00\x30", HELLOS["python_ssl"][:44]]
    )
    data = begin + start
    arriving = PartialHello()
    for size in sorted(chance.sample(range(len(data) + 1), min(5, len(data) + 1))):
        ready = arriving.look(data[:size])
        if not ready:
            assert parse_hello(data[:size]) is NEED_DATA
            assert size < arriving.wanted <= MAX_BYTES


@pytest.mark.parametrize(
    "broken",
    [
        b"\x17\x03\x03\x00\x01x",
        b"\x16\x02\x00\x00\x01x",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x01\x02",
        b"\x16\x03\x01\x00\x09\x01" + (MAX_HELLO_BYTES + 1).to_bytes(3, "big"),
    ],
)
def test_bytes_that_are_no_hello_go_to_the_parser_at_once(broken):
    assert PartialHello().look(broken)
    assert parse_hello(broken) is not NEED_DATA
    later = records(HELLOS["python_ssl"][5:60]) + broken[:2]
    if parse_hello(later) is not NEED_DATA:
        assert PartialHello().look(later)


def test_more_records_than_are_read_end_the_waiting():
    long = hello()[5:9] + bytes(60_000)
    flood = records(handshake(long), [1] * 3_000)
    arriving, size = PartialHello(), 1
    while not arriving.look(flood[:size]):
        size = min(arriving.wanted, len(flood))
    assert parse_hello(flood[:size]) is not NEED_DATA


def test_the_bytes_wanted_fit_into_what_is_peeked():
    chance = random.Random(1)
    for _ in range(200):
        message = handshake(bytes(chance.randrange(1, MAX_HELLO_BYTES + 1)))
        data = records(
            message, [chance.choice([1, 40, 1_000, 16_384]) for _ in range(400)] + [16_384] * 5
        )
        arriving, size = PartialHello(), 0
        while size < len(data) and not arriving.look(data[:size]):
            assert arriving.wanted <= MAX_BYTES
            size = arriving.wanted

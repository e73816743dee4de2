"""The token buckets of client addresses, which workers share without locks."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.token_bucket import ROW_CELLS, WAYS, Rate, TokenBuckets, default_burst

START_US = 5_000_000
FIVE = Rate.of(5, 0)


def workers(count):
    """The same table as several workers see it."""
    cells = memoryview(array("q", bytes(8 * ROW_CELLS * count)))
    return [TokenBuckets(cells, row, count, b"secret") for row in range(count)]


def admitted(tables, rate, times_us, client=b"client"):
    """How many connections are admitted; the workers take turns."""
    return sum(
        tables[number % len(tables)].take(client, rate, at) for number, at in enumerate(times_us)
    )


@pytest.mark.parametrize("count", [1, 4])
def test_a_burst_is_admitted_and_no_more(count):
    assert admitted(workers(count), Rate.of(5, 20), [START_US] * 100) == 20


@pytest.mark.parametrize("count", [1, 4])
def test_after_the_burst_the_rate_counts(count):
    times = range(START_US, START_US + 10_000_000, 10_000)
    assert admitted(workers(count), FIVE, times) == pytest.approx(5 + 10 * 5, abs=1)


def test_a_pause_fills_the_bucket():
    tables = workers(3)
    assert admitted(tables, FIVE, [START_US] * 50) == 5
    assert admitted(tables, FIVE, [START_US + 60_000_000] * 50) == 5


def test_a_client_below_its_rate_is_never_refused():
    times = range(START_US, START_US + 100_000_000, 250_000)
    assert admitted(workers(4), FIVE, times) == len(times)


def test_clients_do_not_count_for_each_other():
    tables = workers(2)
    assert admitted(tables, FIVE, [START_US] * 50, b"one") == 5
    assert admitted(tables, FIVE, [START_US] * 50, b"other") == 5


def test_without_a_burst_it_is_that_of_a_second():
    assert [default_burst(rate) for rate in (0.01, 1, 2.5, 100)] == [1, 1, 3, 100]


def test_a_flood_from_many_addresses_harms_nobody_else():
    """The table is full many times over. Its memory does not grow."""
    (table,) = workers(1)
    slow = Rate.of(0.1, 1)
    clients = 6 * ROW_CELLS // WAYS
    took = sum(table.take(number.to_bytes(4, "big"), slow, START_US) for number in range(clients))
    assert clients - took <= 20, "about 1 of 65,536 clients has another one's tag"


def test_damaged_cells_refuse_nobody():
    cells = memoryview(array("q", [(1 << 63) - 1] * ROW_CELLS))
    table = TokenBuckets(cells, 0, 1, b"secret")
    assert admitted([table], FIVE, [START_US] * 50) == 5


@given(
    st.floats(0.01, 10_000),
    st.integers(0, 50),
    st.lists(st.integers(0, 3_000_000), min_size=1, max_size=60),
)
def test_it_is_a_token_bucket(per_second, burst, pauses_us):
    """The same decisions as a bucket that counts tokens as fractions."""
    rate = Rate.of(per_second, burst)
    size = rate.window_us / rate.interval_us
    tables, now_us, tokens = workers(2), START_US, size
    for number, pause_us in enumerate(pauses_us):
        now_us += pause_us
        tokens = min(size, tokens + pause_us / rate.interval_us)
        took = tables[number % 2].take(b"client", rate, now_us)
        if abs(tokens - 1) > 1e-6:
            assert took == (tokens >= 1)
        tokens -= took

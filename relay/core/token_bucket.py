"""How many new connections a client may make: a token bucket per client address.

The clients' connections are spread over the workers, and the limit holds for all of
them together, without locks.

Theory of operation. A bucket is one number: the time at which it will be full again
(the "theoretical arrival time" of ITU-T I.371). A connection moves it `interval_us`
into the future. It may be at most `window_us` away, so that many intervals are the
burst. Each worker writes only its own row of the table. It reads all rows, and the
latest time counts. Two workers that admit the same client within the same few
microseconds count one connection instead of two, which is all the inaccuracy there is.

A row has SETS sets of WAYS cells. A hash with a secret key chooses the set, so clients
cannot choose whom they share it with, and its other bits are the cell's tag. If a set
is full, the bucket that is full again first is replaced. The memory is bounded: under a
flood from more than SETS * WAYS addresses some get more than their rate, and no client
gets less.

Never: trusts a cell. About one of 65,536 clients of a flood has another one's tag in
its set and shares that bucket.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SETS: Final = 16_384
WAYS: Final = 4
ROW_CELLS: Final = SETS * WAYS
_TIME_BITS: Final = 45  # of microseconds: 407 days
_TIME: Final = (1 << _TIME_BITS) - 1
_TAGS: Final = (1 << 18) - 1
_TAG_SHIFT: Final = 20
# Workers' clocks differ by a turn of their loops.
_SLACK_US: Final = 1_000_000


class Rate(NamedTuple):
    """One connection per `interval_us`, or `window_us / interval_us` at once."""

    interval_us: int
    window_us: int

    @classmethod
    def of(cls, per_second: float, burst: int) -> Rate:
        """The rate of a listener; `burst` 0 is what comes in one second."""
        interval_us = max(1, round(1_000_000 / per_second))
        return cls(interval_us, interval_us * (burst or default_burst(per_second)))


def default_burst(per_second: float) -> int:
    """The connections of one second, and at least one."""
    return max(1, -int(-per_second // 1))


class TokenBuckets:
    """The table as one worker sees it: it writes row `row` of `rows`."""

    __slots__ = ("_cells", "_own", "_rows", "_secret")

    def __init__(self, cells: memoryview[int], row: int, rows: int, secret: bytes) -> None:
        self._cells = cells
        self._own = row * ROW_CELLS
        self._rows = range(0, rows * ROW_CELLS, ROW_CELLS)
        self._secret = secret

    def take(self, client: bytes, rate: Rate, now_us: int) -> bool:
        """Whether this client may connect now. If so, its bucket has one token less."""
        cells = self._cells
        hashed = hash(self._secret + client)
        base = hashed % SETS * WAYS
        tag = hashed >> _TAG_SHIFT & _TAGS or 1
        now_us &= _TIME
        full_at = now_us
        latest = now_us + rate.window_us + _SLACK_US
        for row in self._rows:
            for at in range(row + base, row + base + WAYS):
                cell = cells[at]
                if cell >> _TIME_BITS == tag and full_at < cell & _TIME <= latest:
                    full_at = cell & _TIME
        full_at += rate.interval_us
        if full_at > now_us + rate.window_us:
            return False
        cells[self._place(base, tag, now_us)] = tag << _TIME_BITS | full_at & _TIME
        return True

    def _place(self, base: int, tag: int, now_us: int) -> int:
        """The client's cell, or the one of the bucket that is full again first."""
        cells, first = self._cells, self._own + base
        least_us, place = 1 << 62, first
        for at in range(first, first + WAYS):
            cell = cells[at]
            if cell >> _TIME_BITS == tag:
                return at
            left_us = (cell & _TIME) - now_us
            if left_us < least_us:
                least_us, place = left_us, at
        return place

"""The choice among the records of a service, by priority and weight (RFC 2782).

Records with the lowest priority are used; the others wait until none of those works.
Among records of one priority, the weight is each record's share. A record of weight 0
is hardly ever chosen while another has a weight, and if all have weight 0, all have the
same share.

Never: knows addresses, or draws random numbers.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate


def shares(weights: Sequence[tuple[int, int]]) -> list[float]:
    """The running sum of the shares of entries of one priority.

    An entry is the weight of its record, and how many entries the record has: one per
    address of its target.

    The RFC draws a whole number from 0 to the sum of the weights, and only 0 leads to a
    record of weight 0. So all these records together have the share of weight 1.
    """
    some = any(weight for weight, _ in weights)
    zeros = sum(1 for weight, _ in weights if not weight) or 1
    return list(
        accumulate(
            weight / entries if weight else 1.0 / zeros if some else 1.0 / entries
            for weight, entries in weights
        )
    )


def draw(running: Sequence[float], chance: float) -> int:
    """The entry that this number from [0, 1) leads to."""
    return min(bisect(running, chance * running[-1]), len(running) - 1)

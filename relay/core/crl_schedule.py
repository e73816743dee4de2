"""When a revocation list is fetched again.

Never: fetches, reads a clock, or waits.
"""

from __future__ import annotations

from dataclasses import dataclass

# A server may ask to be asked again later than this, but not more often.
LEAST_MAX_AGE_S = 60.0
# A list that does not say when the next one comes is fetched once a day.
MOST_S = 86_400.0
LEAST_S = 5.0
# How often the server of an expired list is asked.
EXPIRED_S = 60.0
# The first wait after a failure; each further failure doubles it, up to the second.
FIRST_RETRY_S, MOST_RETRY_S = 10.0, 600.0
# Each wait varies by up to a tenth, so that many relays do not ask at the same moment.
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Freshness:
    """What a list and its server say about the next list. Instants are Unix time.

    `next_publish_at` is an extension of Microsoft's CA: when it publishes the next
    list, which is before the end of this one.
    """

    next_update_at: float | None = None
    next_publish_at: float | None = None
    max_age_s: float | None = None


def wait_after_success(now: float, fresh: Freshness, chance: float) -> float:
    """Seconds until the next fetch. `chance` is uniform in [0, 1)."""
    waits = [MOST_S]
    if fresh.max_age_s is not None:
        waits.append(max(fresh.max_age_s, LEAST_MAX_AGE_S))
    if fresh.next_update_at is not None:
        left_s = fresh.next_update_at - now
        waits.append(left_s / 2 if left_s > 0 else EXPIRED_S)
    wait_s = min(waits) * (1 - JITTER * chance)
    if fresh.next_publish_at is not None:
        left_s = fresh.next_publish_at - now
        # Not before it: that would fetch the old list once more.
        wait_s = min(wait_s, left_s * (1 + JITTER * chance) if left_s > 0 else MOST_RETRY_S)
    return max(LEAST_S, wait_s)


def wait_after_failure(
    now: float, failures: int, next_update_at: float | None, chance: float
) -> float:
    """Seconds until the next try, after this many failures in a row (1 or more).

    While the list that is kept has not ended, there is always another try before.
    """
    wait_s = min(MOST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 10))
    if next_update_at is not None and next_update_at > now:
        wait_s = min(wait_s, (next_update_at - now) / 2)
    return max(LEAST_S, wait_s * (1 - JITTER * chance))

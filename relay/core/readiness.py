"""Why new clients should go elsewhere, as /readyz and `relay status --quiet` report it.

Never: reads a clock; ages are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

STALE_S = 10.0
_STATES = {
    "starting": "the relay is starting",
    "leaving": "the relay will drain soon; send it no new connections",
    "draining": "the relay is draining; it takes no new connections",
}
DRAINING = frozenset({"leaving", "draining"})


def why_not_ready(state: str, workers: int, ages_s: Sequence[float], disabled: str) -> str:
    """Why a load balancer should send no connection here, or "" when it can.

    `ages_s`: for each worker that serves, the time since its last heartbeat. `disabled`
    is why no route works, "" if any does.
    """
    if state in _STATES:
        return _STATES[state]
    if not ages_s:
        return f"none of {workers} workers is serving; see the relay's log for the reason"
    age_s = min(ages_s)
    if age_s >= STALE_S:
        return (
            f"none of {len(ages_s)} serving workers has sent a heartbeat for {int(age_s)} s;"
            " see the relay's log"
        )
    return f"every route is disabled: {disabled}" if disabled else ""

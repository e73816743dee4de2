"""Liveness and readiness, as /healthz and /readyz report them.

Never: reads a clock; the caller passes CLOCK_MONOTONIC in milliseconds.
"""

from __future__ import annotations

from relay.admin.metrics import routes_disabled
from relay.shared.messages import facts_of
from relay.shared.scoreboard import PHASE_SERVING
from relay.shared.snapshot import Snapshot

STALE_MS = 10_000


def why_unhealthy(snapshot: Snapshot, now_ms: int) -> str:
    """Why the supervisor counts as dead, or "" when it is alive."""
    if not snapshot.supervisor_beat_ms:
        return "the supervisor is still starting: no heartbeat yet"
    age_ms = now_ms - snapshot.supervisor_beat_ms
    if age_ms >= STALE_MS:
        return f"the supervisor has sent no heartbeat for {age_ms // 1000} s; see its log"
    return ""


def why_not_ready(snapshot: Snapshot, now_ms: int) -> str:
    """Why a load balancer should send no connection here, or "" when it can."""
    facts = facts_of(snapshot.facts)
    if facts["state"] == "starting":
        return "the relay is starting"
    if facts["state"] == "leaving":
        return "the relay will drain soon; send it no new connections"
    if facts["state"] == "draining":
        return "the relay is draining; it takes no new connections"
    serving = [worker.heartbeat_ms for worker in snapshot.workers if worker.phase == PHASE_SERVING]
    if not serving:
        return (
            f"none of {len(snapshot.workers)} workers is serving; "
            "see the relay's log for the reason"
        )
    age_ms = now_ms - max(serving)
    if age_ms >= STALE_MS:
        return (
            f"none of {len(serving)} serving workers has sent a heartbeat "
            f"for {age_ms // 1000} s; see the relay's log"
        )
    reasons = list(routes_disabled(facts).values())
    if reasons and all(reasons):
        return f"every route is disabled: {reasons[0]}"
    return ""

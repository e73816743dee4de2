"""Liveness and readiness, as /healthz and /readyz report them.

Never: reads a clock; the caller passes CLOCK_MONOTONIC in milliseconds.
"""

from __future__ import annotations

from relay.admin.disabled_parts import routes_disabled
from relay.core import readiness
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
    serving = [worker.heartbeat_ms for worker in snapshot.workers if worker.phase == PHASE_SERVING]
    ages_s = [(now_ms - beat_ms) / 1000 for beat_ms in serving]
    reasons = list(routes_disabled(facts).values())
    disabled = reasons[0] if reasons and all(reasons) else ""
    return readiness.why_not_ready(facts["state"], len(snapshot.workers), ages_s, disabled)

"""Which pools are short of backends, for `relay status`.

Never: changes a backend; reads the checker's file if no backend is down.
"""

from __future__ import annotations

from relay.config.model import Config
from relay.core.untrusted import clip
from relay.shared.backends_view import HEALTH_FILE, read_health
from relay.shared.entities import HEALTH, HEALTH_DOWN, MODE_OVERRIDE, RETRY_UNTIL_MS
from relay.shared.messages import DisabledFact
from relay.shared.scoreboard import SHARED_ROW, Scoreboard, monotonic_ms
from relay.shared.state_cells import is_waiting
from relay.shared.status_facts import ShortPool

_MOST_NAMED = 5  # backends of a pool
_BY_OPERATOR = {2: "drained by an operator", 3: "disabled by an operator"}
_CHECKS_FAIL, _HAS_FAILED = "its health checks fail", "a connection to it failed"


def short_pools(
    config: Config, scoreboard: Scoreboard, disabled: list[DisabledFact]
) -> list[ShortPool]:
    """Each pool with a backend that gets no new sessions, but no disabled pool."""
    gone = {(one["kind"], one["parent"], one["name"]): one["why"] for one in disabled}
    found: list[ShortPool] = []
    for name, pool in config.pool.items():
        if ("pool", "", name) in gone:
            continue
        down = {
            backend.route: why
            for backend in pool.backend
            if (
                why := gone.get(("backend", name, backend.route))
                or _why_down(scoreboard, name, backend.route)
            )
        }
        if down:
            found.append(
                {
                    "pool": name,
                    "up": len(pool.backend) - len(down),
                    "backends": len(pool.backend),
                    "down": [
                        {"backend": backend, "why": why}
                        for backend, why in list(down.items())[:_MOST_NAMED]
                    ],
                }
            )
    if any(config.pool[each["pool"]].health for each in found):
        _explain(found, config)
    return found


def _why_down(scoreboard: Scoreboard, pool: str, backend: str) -> str:
    cells, layout = scoreboard.row(SHARED_ROW), scoreboard.layout
    if cells[layout.cell(HEALTH, pool, backend)] == HEALTH_DOWN:
        return _CHECKS_FAIL
    if is_waiting(cells[layout.cell(RETRY_UNTIL_MS, pool, backend)], monotonic_ms()):
        return _HAS_FAILED
    return _BY_OPERATOR.get(cells[layout.cell(MODE_OVERRIDE, pool, backend)], "")


def _explain(pools: list[ShortPool], config: Config) -> None:
    """Put what the health checks found in the place of "its health checks fail"."""
    health = read_health(config.relay.state_dir / HEALTH_FILE)
    for name, one in ((each["pool"], one) for each in pools for one in each["down"]):
        found = health.get(f"{name}/{one['backend']}", {}).get("reason")
        if found and one["why"] == _CHECKS_FAIL:
            one["why"] = clip(found, 120)

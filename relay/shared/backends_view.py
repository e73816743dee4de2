"""Pools and backends as operators see them: what is configured, what was counted, what is known of their health, and what is overridden.

From the scoreboard and state_dir/checker/health.json alone, as JSON types. For the balancer-manager page, its interface and `relay backend list`.

Never: changes anything, or asks a worker.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from relay.config.model import Config
from relay.shared.catalogue import FROM_BACKEND, HEALTH, RETRY_UNTIL_MS, TO_BACKEND, WHYS, Series
from relay.shared.scoreboard import monotonic_ms
from relay.shared.snapshot import Snapshot
from relay.shared.state_cells import is_waiting

HEALTH_FILE = (
    "checker/health.json"  # in a directory of its own, in which alone the checker may write
)
HEALTH_BYTES = 4 * 1024 * 1024
TEXT_CHARACTERS = 1024
MOST_BRACKETS, MOST_COMMAS = 40_000, 250_000  # of 15,000 backends
LARGEST = 1e15
_HEALTH_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_HEALTH_KEYS = (
    "state",
    "since",
    "reason",
    "remedy",
    "last_check_at",
    "duration_s",
    "tls_version",
    "not_after",
)
_UNCHECKED, _UP, _DOWN = "unknown", "up", "down"


def pool_facts(config: Config) -> list[dict[str, Any]]:
    """What the supervisor publishes of the configuration, for this page."""
    return [
        {
            "name": name,
            "balance": pool.balance,
            "sticky": pool.sticky,
            "checked": pool.health is not None,
            "backends": [
                {
                    "backend": one.route,
                    "address": one.address,
                    "name": one.name,
                    "weight": one.weight,
                    "standby": one.standby,
                }
                for one in pool.backend
            ],
        }
        for name, pool in config.pool.items()
    ]


def backends_reply(snapshot: Snapshot, state_dir: Path, health_fd: int = -1) -> dict[str, Any]:
    """`pools`, with everything that is known of each backend, `inactive`: overrides of backends that are not configured, and `routes_disabled`.

    `health_fd` is the directory of the health file, for who may not walk there. Instants are Unix seconds. `load` is the backend's part, 0 to 1, of the connections open to its pool.
    """
    now_at, now_ms = time.time(), monotonic_ms()
    health = read_health(state_dir / HEALTH_FILE, health_fd)
    overrides = {(one["pool"], one["backend"]): one for one in snapshot.facts.get("overrides", ())}
    disabled = {
        (one["kind"], one["parent"], one["name"]): one["why"]
        for one in snapshot.facts.get("disabled", ())
    }
    known: set[tuple[str, str]] = set()
    pools = []
    for pool in snapshot.facts.get("pools", ()):
        backends = []
        for configured in pool["backends"]:
            member = (pool["name"], configured["backend"])
            known.add(member)
            one = _backend(
                snapshot,
                member,
                configured,
                overrides.get(member, {}),
                health.get("/".join(member)),
                now_at - now_ms / 1000,
                now_ms,
            )
            why = (
                disabled.get(("pool", "", pool["name"])) or disabled.get(("backend", *member)) or ""
            )
            backends.append({**one, **_disabled(one, why)})
        busy = sum(one["busy"] for one in backends)
        for one in backends:
            one["load"] = round(one["busy"] / busy, 4) if busy else 0.0
        pools.append(
            {
                **{key: pool[key] for key in ("name", "balance", "sticky", "checked")},
                "busy": busy,
                "disabled": disabled.get(("pool", "", pool["name"]), ""),
                "backends": backends,
            }
        )
    routes = [
        {"listener": parent, "route": name, "why": why}
        for (kind, parent, name), why in disabled.items()
        if kind == "route"
    ]
    return {
        "at": now_at,
        "pools": pools,
        "routes_disabled": routes,
        "inactive": [one for member, one in overrides.items() if member not in known],
    }


def _backend(
    snapshot: Snapshot,
    member: tuple[str, str],
    configured: dict[str, Any],
    override: dict[str, Any],
    health: dict[str, Any] | None,
    booted_at: float,
    now_ms: int,
) -> dict[str, Any]:
    values, shared = snapshot.values, snapshot.shared
    mode, weight = override.get("mode"), override.get("weight")
    configured_mode = "standby" if configured["standby"] else "enabled"
    elected = {
        why: count
        for why in WHYS
        if (count := values.get(Series("relay_backend_selected_total", (*member, why)), 0))
    }
    retry_ms = shared.get(Series(RETRY_UNTIL_MS, member), 0)
    state = {1: _UP, 2: _DOWN}.get(shared.get(Series(HEALTH, member), 0), _UNCHECKED)
    waiting = is_waiting(retry_ms, now_ms)
    effective = mode["value"] if mode else configured_mode
    return {
        "backend": member[1],
        "address": configured["address"],
        "name": configured["name"],
        "configured": {"mode": configured_mode, "weight": configured["weight"]},
        "mode": effective,
        "weight": weight["value"] if weight else configured["weight"],
        "status": _status(effective, down=state == _DOWN, in_retry=waiting),
        "up": state != _DOWN and not waiting,
        "elected": sum(elected.values()),
        "elected_by": elected,
        "busy": values.get(Series("relay_backend_connections_active", member), 0),
        "load": 0.0,
        "to_bytes": values.get(Series("relay_bytes_total", (*member, TO_BACKEND)), 0),
        "from_bytes": values.get(Series("relay_bytes_total", (*member, FROM_BACKEND)), 0),
        "retry_until": round(booted_at + retry_ms / 1000, 3) if waiting else None,
        "health": {**dict.fromkeys(_HEALTH_KEYS), **(health or {}), "state": state},
        "overridden": bool(mode or weight),
        "override": {"mode": mode, "weight": weight},
    }


def _disabled(backend: dict[str, Any], why: str) -> dict[str, Any]:
    """What is different of a backend that cannot work; what an operator has said of it comes first."""
    if not why:
        return {"disabled": ""}
    status = backend["status"] if backend["status"] in {"disabled", "drain"} else "disabled"
    return {"disabled": why, "up": False, "status": status}


def _status(mode: str, *, down: bool, in_retry: bool) -> str:
    """One word: what an operator has said comes first, then what was found out."""
    if mode in {"disabled", "drain"}:
        return mode
    if down:
        return "down"
    if in_retry:
        return "retry"
    return "standby" if mode == "standby" else "ok"


def read_health(path: Path, directory_fd: int = -1) -> dict[str, dict[str, Any]]:
    """What the checks have found, by "pool/backend"; nothing when the file is not there or is not what it should be."""
    try:
        opened = (
            os.open(path.name, _HEALTH_FLAGS, dir_fd=directory_fd)
            if directory_fd >= 0
            else os.open(path, _HEALTH_FLAGS)
        )
        with os.fdopen(opened, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return {}
            text = file.read(HEALTH_BYTES)
        # The supervisor reads it too, and must not be held up: 4 MiB of brackets take a second to parse.
        if text.count(b"[") + text.count(b"{") > MOST_BRACKETS or text.count(b",") > MOST_COMMAS:
            return {}
        data = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for member, said in data.items() if isinstance(data, dict) else ():
        if isinstance(said, dict):
            for key in _HEALTH_KEYS:
                numeric = key in {"since", "last_check_at", "duration_s", "not_after"}
                value = said.get(key)
                if numeric:
                    if _is_number(value):
                        found[member][key] = value
                elif isinstance(value, str):
                    found[member][key] = value[:TEXT_CHARACTERS]
    return dict(found)


def _is_number(value: object) -> bool:
    """A number that is one in every JSON reader and that arithmetic takes."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST

"""Pools and backends as the balancer-manager page and `relay backend list` show them.

The sources are the scoreboard (configuration, counters, overrides) and
state_dir/checker/health.json (results of health checks).

Never: changes anything, or asks a worker.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from relay.config.address import parse_address
from relay.config.backend_address import is_service, lookup_name
from relay.core.untrusted import clip
from relay.shared.addresses import endpoint_reply
from relay.shared.entities import HEALTH, HEALTH_DOWN, HEALTH_UP, RETRY_UNTIL_MS, Series
from relay.shared.label_values import FROM_BACKEND, TO_BACKEND, WHYS
from relay.shared.messages import (
    BackendFact,
    CheckedHealth,
    FetchEntry,
    OverrideFact,
    PoolFact,
    facts_of,
)
from relay.shared.replies import BackendReply, DisabledRoute, EndpointReply, PoolReply, PoolsReply
from relay.shared.scoreboard import monotonic_ms
from relay.shared.snapshot import Snapshot
from relay.shared.state_cells import is_waiting

if TYPE_CHECKING:
    from relay.config.model import Config

# The checker can write in this directory only.
HEALTH_FILE = "checker/health.json"
HEALTH_BYTES = 4 * 1024 * 1024
TEXT_CHARACTERS = 1024
# More than the file of 15,000 backends has. The supervisor reads the file too, and
# parsing 4 MiB of brackets would block its loop for a second.
MOST_BRACKETS, MOST_COMMAS = 40_000, 250_000
LARGEST = 1e15
_HEALTH_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_HEALTH_KEYS = tuple(CheckedHealth.__annotations__)
_NUMERIC_KEYS = frozenset(("since", "last_check_at", "duration_s", "not_after"))
_UNCHECKED, _UP, _DOWN = "unknown", "up", "down"

BackendKey = tuple[str, str]
"""Pool and backend."""


def pool_facts(config: Config) -> list[PoolFact]:
    """The configured pools, for the supervisor to publish."""
    return [
        {
            "name": name,
            "balance": pool.balance,
            "sticky": pool.sticky,
            "checked": pool.health is not None,
            "backends": [
                {
                    "backend": backend.route,
                    "address": backend.address,
                    "name": backend.name,
                    "weight": backend.weight,
                    "standby": backend.standby,
                }
                for backend in pool.backend
            ],
        }
        for name, pool in config.pool.items()
    ]


def backends_reply(snapshot: Snapshot, state_dir: Path, health_fd: int = -1) -> PoolsReply:
    """Everything that is known of the backends.

    `health_fd` is the directory of the health file, for a process without access to
    its path.
    """
    now_at, now_ms = time.time(), monotonic_ms()
    facts = facts_of(snapshot.facts)
    health = read_health(state_dir / HEALTH_FILE, health_fd)
    overrides = {(each["pool"], each["backend"]): each for each in facts["overrides"]}
    disabled = {
        (each["kind"], each["parent"], each["name"]): each["why"] for each in facts["disabled"]
    }
    configured: set[BackendKey] = set()
    pools: list[PoolReply] = []
    for pool in facts["pools"]:
        why_pool = disabled.get(("pool", "", pool["name"]), "")
        backends = []
        for fact in pool["backends"]:
            key = (pool["name"], fact["backend"])
            configured.add(key)
            backend = _backend(
                snapshot,
                key,
                fact,
                overrides.get(key),
                health.get("/".join(key), {}),
                booted_at=now_at - now_ms / 1000,
                now_ms=now_ms,
            )
            _mark_disabled(backend, why_pool or disabled.get(("backend", *key), ""))
            backends.append(backend)
        pools.append(_pool(pool, backends, why_pool))
    routes: list[DisabledRoute] = [
        {"listener": parent, "route": name, "why": why}
        for (kind, parent, name), why in disabled.items()
        if kind == "route"
    ]
    return {
        "at": now_at,
        "pools": pools,
        "routes_disabled": routes,
        "inactive": [each for key, each in overrides.items() if key not in configured],
    }


def _pool(fact: PoolFact, backends: list[BackendReply], why_disabled: str) -> PoolReply:
    """The pool with these backends. Sets their `load`."""
    busy = sum(backend["busy"] for backend in backends)
    for backend in backends:
        backend["load"] = round(backend["busy"] / busy, 4) if busy else 0.0
    return {
        "name": fact["name"],
        "balance": fact["balance"],
        "sticky": fact["sticky"],
        "checked": fact["checked"],
        "busy": busy,
        "disabled": why_disabled,
        "backends": backends,
    }


def _backend(
    snapshot: Snapshot,
    key: BackendKey,
    fact: BackendFact,
    override: OverrideFact | None,
    health: dict[str, Any],
    *,
    booted_at: float,
    now_ms: int,
) -> BackendReply:
    values, states = snapshot.values, snapshot.states
    mode, weight = (override["mode"], override["weight"]) if override else (None, None)
    configured_mode = "standby" if fact["standby"] else "enabled"
    elected = {
        why: count
        for why in WHYS
        if (count := values.get(Series("relay_backend_selected_total", (*key, why)), 0))
    }
    retry_ms = states.get(Series(RETRY_UNTIL_MS, key), 0)
    state = {HEALTH_UP: _UP, HEALTH_DOWN: _DOWN}.get(states.get(Series(HEALTH, key), 0), _UNCHECKED)
    waiting = is_waiting(retry_ms, now_ms)
    effective = str(mode["value"]) if mode else configured_mode
    return {
        "backend": fact["backend"],
        "address": fact["address"],
        "endpoints": _endpoints(snapshot, fact["address"]),
        "name": fact["name"],
        "configured": {"mode": configured_mode, "weight": fact["weight"]},
        "mode": effective,
        "weight": int(weight["value"]) if weight else fact["weight"],
        "status": _status(effective, down=state == _DOWN, in_retry=waiting),
        "up": state != _DOWN and not waiting,
        "elected": sum(elected.values()),
        "elected_by": elected,
        "busy": values.get(Series("relay_backend_connections_active", key), 0),
        "load": 0.0,
        "to_bytes": values.get(Series("relay_bytes_total", (*key, TO_BACKEND)), 0),
        "from_bytes": values.get(Series("relay_bytes_total", (*key, FROM_BACKEND)), 0),
        "retry_until": round(booted_at + retry_ms / 1000, 3) if waiting else None,
        "health": _health(state, health),
        "overridden": bool(mode or weight),
        "override": {"mode": mode, "weight": weight},
        "disabled": "",
    }


def _endpoints(snapshot: Snapshot, address: str) -> list[EndpointReply]:
    """The addresses of a backend with a name, as looked up."""
    name = lookup_name(address)
    found = snapshot.names.get(name) if name else None
    if found is None:
        return []
    port = 0 if is_service(address) else parse_address(address)[1]
    return [endpoint_reply(each, port) for each in found.located]


def _health(state: str, entry: dict[str, Any]) -> CheckedHealth:
    """The entry of health.json, with the state that sessions use."""
    return cast("CheckedHealth", {**dict.fromkeys(_HEALTH_KEYS), **entry, "state": state})


def _mark_disabled(backend: BackendReply, why: str) -> None:
    """Mark a backend that cannot work. An operator's `drain` stays its status."""
    if why:
        backend["disabled"], backend["up"] = why, False
        if backend["status"] != "drain":
            backend["status"] = "disabled"


def _status(mode: str, *, down: bool, in_retry: bool) -> str:
    """One word. An operator's setting comes before the results of checks."""
    if mode in {"disabled", "drain"}:
        return mode
    if down:
        return "down"
    if in_retry:
        return "retry"
    return "standby" if mode == "standby" else "ok"


def read_health(path: Path, directory_fd: int = -1) -> dict[str, dict[str, Any]]:
    """The entries of the health file by "pool/backend".

    Empty when the file does not exist or is not valid. Values of the wrong type are
    dropped.
    """
    entries: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for backend, entry in _load(path, directory_fd).items():
        if isinstance(entry, dict):
            for key in _HEALTH_KEYS:
                value = entry.get(key)
                if key in _NUMERIC_KEYS:
                    if _is_number(value):
                        entries[backend][key] = value
                elif isinstance(value, str):
                    entries[backend][key] = value[:TEXT_CHARACTERS]
    return dict(entries)


def read_fetches(path: Path) -> list[FetchEntry]:
    """The fetched revocation lists in the health file, without invalid entries."""
    found = _load(path, -1).get("lists")
    return [
        {
            "url": clip(each["url"], TEXT_CHARACTERS),
            "error": clip(each["error"], TEXT_CHARACTERS),
            "failing_since": _number_in(each, "failing_since"),
            "confirmed_at": _number_in(each, "confirmed_at"),
        }
        for each in (found if isinstance(found, list) else ())
        if isinstance(each, dict)
        and isinstance(each.get("url"), str)
        and isinstance(each.get("error"), str)
    ]


def _number_in(entry: dict[str, Any], key: str) -> float | None:
    value = entry.get(key)
    return value if _is_number(value) else None


def _load(path: Path, directory_fd: int) -> dict[str, Any]:
    """The contents of the health file; empty if it does not exist or is not valid."""
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
        if text.count(b"[") + text.count(b"{") > MOST_BRACKETS or text.count(b",") > MOST_COMMAS:
            return {}
        data = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_number(value: object) -> bool:
    """Whether every JSON reader can read the number, and arithmetic accepts it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST

"""What the supervisor says of itself: `relay status`, and which child a pid is.

Never: changes anything.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import relay
from relay.tls.raw import openssl_version

if TYPE_CHECKING:
    from relay.supervisor.main import Supervisor  # main imports us


def status_reply(supervisor: Supervisor) -> dict[str, Any]:
    """The reply to `relay status`."""
    fleet = supervisor.fleet
    return {
        "ok": True,
        "version": relay.__version__,
        "openssl": openssl_version(),
        "config": str(supervisor.config_path),
        "state": supervisor.state_word,
        "generation": fleet.generation,
        "started_at": supervisor.started_at,
        "supervisor": {"pid": os.getpid()},
        "workers": fleet.crew.status(time.monotonic()),
        "slots": fleet.slot_status(time.monotonic()),
        "listeners": fleet.endpoints(),
        "admin": supervisor.admin.address,
        "checker": {"pid": supervisor.checker.pid},
        "disabled": supervisor.disabled.facts(),
    }


def facts_of(supervisor: Supervisor) -> dict[str, Any]:
    """What a reader of the scoreboard cannot count, and what changes; see `admin.metrics`."""
    prepared = supervisor.fleet.prepared
    return {
        "generation": prepared.generation.number,
        "version": relay.__version__,
        "openssl": openssl_version(),
        "started_at": supervisor.started_at,
        "state": supervisor.state_word,
        "slots": prepared.slots,
        "overrides": supervisor.overrides.facts(),
        "disabled": supervisor.disabled.facts(),
    }


def child_named(supervisor: Supervisor, pid: int) -> str:
    """What our child of that pid is; "" when it is none of ours."""
    child = supervisor.fleet.crew.children.get(pid)
    if child is not None:
        return f"worker {child.slot}"
    return {supervisor.admin.pid: "the admin process", supervisor.checker.pid: "the checker"}.get(
        pid, ""
    )

"""What the relay says about itself: to operators, and to readers of the scoreboard.

Never: changes the relay.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import relay
from relay.core.fleet_view import Phase
from relay.core.readiness import why_not_ready
from relay.shared.backends_view import HEALTH_FILE, read_fetches
from relay.shared.connection_limit import connections_allowed
from relay.shared.entities import fetches_lists, hosts_of
from relay.shared.messages import FetchEntry, RunningFacts
from relay.shared.replies import LastReload, NameReply, StatusReply
from relay.shared.status_facts import EndingCertificate, ShortPool, UpgradeFact
from relay.supervisor.admin_process import AdminProcess
from relay.supervisor.canary import Canary
from relay.supervisor.checker_process import CheckerProcess
from relay.supervisor.disabled import Disabled
from relay.supervisor.file_dates import FileDates
from relay.supervisor.fleet import Fleet
from relay.supervisor.name_facts import name_facts
from relay.supervisor.override_store import OverrideStore
from relay.supervisor.pending_files import PendingFiles
from relay.supervisor.recent_counts import RecentCounts
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.short_pools import short_pools
from relay.supervisor.watcher import Watcher
from relay.tls.raw import openssl_version

RETRY_S = 1.0
_CERTIFICATES = 10


class RelayState(StrEnum):
    """What the whole relay does; it never goes back to an earlier state."""

    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"  # accepts for relay.drain_delay_s more
    DRAINING = "draining"


@dataclass(slots=True, eq=False)
class Status:
    """The state of the relay, and everything that is reported with it."""

    config_path: Path
    fleet: Fleet
    admin: AdminProcess
    checker: CheckerProcess
    overrides: OverrideStore
    disabled: Disabled
    dates: FileDates
    watcher: Watcher
    pending: PendingFiles
    scoreboards: Scoreboards
    canary: Canary
    state: RelayState = RelayState.STARTING
    drain_at: float = float("inf")  # CLOCK_MONOTONIC, in state LEAVING
    started_at: float = field(default_factory=time.time)
    last_reload_ok: bool = True
    last_reload_why: str = ""
    last_reload_at: float = field(default_factory=time.time)
    upgraded: UpgradeFact | None = None  # when and from what this version took over
    _publish_at: float = float("inf")
    recent: RecentCounts = field(init=False)

    def __post_init__(self) -> None:
        self.recent = RecentCounts(self.scoreboards)

    def reply(self, *, lately: bool) -> StatusReply:
        """The reply to `relay status`; `lately` adds what keepalived need not know."""
        fleet, now = self.fleet, time.monotonic()
        reply: StatusReply = {
            "ok": True,
            "version": relay.__version__,
            "openssl": openssl_version(),
            "config": str(self.config_path),
            "state": self.state,
            "drains_in_s": self._drains_in_s(now),
            "not_ready": self._why_not_ready(now),
            "generation": fleet.generations.number,
            "started_at": self.started_at,
            "supervisor": {"pid": os.getpid()},
            "workers": fleet.workers.status(now),
            "slots": fleet.slots.status(now),
            "listeners": fleet.generations.sockets.endpoints(),
            "admin": self.admin.address,
            "checker": {"pid": self.checker.pid},
            "names": self._names(),
            "fetches": self._fetches(),
            "disabled": self.disabled.facts(),
            "crls": self.dates.lists.facts(),
            "staples": self.dates.staples.facts(),
            "pending": self.pending.facts(),
            "watcher": {"pid": self.watcher.pid},
            "last_reload": self._last_reload(),
            "upgraded": self.upgraded,
            "canary": self.canary.status(now),
        }
        if lately:
            reply["last_minute"] = self.recent.facts(now)
            reply["short_pools"] = self._short_pools()
            reply["certificates"] = self._certificates()
            limits = self.fleet.generations.serving.config.limits
            reply["connections_allowed"] = connections_allowed(limits.connections)
        return reply

    def _last_reload(self) -> LastReload:
        found: LastReload = {"ok": self.last_reload_ok, "at": self.last_reload_at}
        if not self.last_reload_ok:
            found["why"] = self.last_reload_why
        return found

    def _short_pools(self) -> list[ShortPool]:
        generations = self.fleet.generations
        scoreboard = self.scoreboards.generation(generations.number)
        return short_pools(generations.serving.config, scoreboard, self.disabled.facts())

    def _certificates(self) -> list[EndingCertificate]:
        """Those that end first, each file and subject once."""
        ends: dict[tuple[str, str], float] = {}
        for one in self.fleet.generations.serving.certificates:
            key = one.file, one.subject
            ends[key] = min(ends.get(key, one.not_after_at), one.not_after_at)
        first = sorted(ends.items(), key=lambda each: each[1])[:_CERTIFICATES]
        return [
            {"file": file, "subject": subject, "not_after": at} for (file, subject), at in first
        ]

    def _drains_in_s(self, now: float) -> float | None:
        leaving = self.state is RelayState.LEAVING
        return round(max(0.0, self.drain_at - now), 1) if leaving else None

    def _why_not_ready(self, now: float) -> str:
        workers = self.fleet.workers.status(now)
        ages_s = [one["heartbeat_age_s"] for one in workers if one["phase"] == Phase.SERVING]
        disabled = self.disabled.why_no_route_is_left
        return why_not_ready(self.state, len(workers), ages_s, disabled)

    def reload_is_over(self, *, succeeded: bool, why: str = "") -> None:
        """A reload that was requested has succeeded, or was refused (why)."""
        self.last_reload_ok, self.last_reload_why = succeeded, why
        if succeeded:
            self.last_reload_at = time.time()
        self.publish_soon()

    def publish_soon(self) -> None:
        """Let the next `step` publish."""
        self._publish_at = min(self._publish_at, time.monotonic())

    def step(self, now: float) -> None:
        """Publish what is due. Without memory or descriptors, try again later."""
        self.recent.step(now)
        if now >= self._publish_at:
            try:
                self.publish()
            except OSError:
                self._publish_at = now + RETRY_S
            else:
                self._publish_at = float("inf")

    def _names(self) -> list[NameReply]:
        generations = self.fleet.generations
        scoreboard = self.scoreboards.generation(generations.number)
        return name_facts(hosts_of(generations.serving.config), scoreboard)

    def _fetches(self) -> list[FetchEntry]:
        config = self.fleet.generations.serving.config
        file = config.relay.state_dir / HEALTH_FILE
        return read_fetches(file) if fetches_lists(config) else []

    def publish(self) -> None:
        """Give readers of the scoreboard a new view: all counters, and these facts.

        `relay.shared.messages.Facts` has the keys.
        """
        prepared = self.fleet.generations.serving
        facts: RunningFacts = {
            "generation": prepared.generation.number,
            "version": relay.__version__,
            "openssl": openssl_version(),
            "started_at": self.started_at,
            "state": self.state,
            "slots": prepared.slots,
            "connections_allowed": prepared.slots
            * connections_allowed(prepared.config.limits.connections),
            "overrides": self.overrides.facts(),
            "disabled": self.disabled.facts(),
            "crls": self.dates.lists.facts(),
            "staples": self.dates.staples.facts(),
            "pending": self.pending.facts(),
            "last_reload_ok": self.last_reload_ok,
            "last_reload_at": self.last_reload_at,
        }
        self.scoreboards.publish(facts, prepared.description)

    def line(self) -> str:
        """One line for `systemctl status`."""
        generations = self.fleet.generations
        return (
            f"generation {generations.number}, {len(self.fleet.serving_pids())} of"
            f" {generations.serving.slots} workers serve"
        )

    def child_name(self, pid: int) -> str:
        """What the child with this pid is; empty if no child has it."""
        worker = self.fleet.workers.processes.get(pid)
        if worker is not None:
            return f"worker {worker.slot}"
        names = {
            self.admin.pid: "the admin process",
            self.checker.pid: "the checker",
            self.watcher.pid: "the watcher",
        }
        return names.get(pid, "")

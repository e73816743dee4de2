"""The replies of the supervisor, as types for both ends: JSON lines over a socket.

Requests come from `relay` commands over the control socket, and from the admin process
over its channel. `ok` tells a `FailureReply` from the others.

Never: checks what was received.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from relay.shared.apply_replies import ApplyReply
from relay.shared.canary_replies import CanaryStatus
from relay.shared.messages import (
    CheckedHealth,
    CrlFact,
    DisabledFact,
    FetchEntry,
    OverriddenSetting,
    OverrideFact,
    PendingFact,
    ProcessStatus,
    StapleFact,
)
from relay.shared.status_facts import EndingCertificate, LastMinute, ShortPool, UpgradeFact


class FailureReply(TypedDict):
    """A command that failed. `code` is the exit code of the `relay` command.

    `id` repeats the number of an admin process's request.
    """

    ok: Literal[False]
    error: str
    code: NotRequired[int]
    problems: NotRequired[list[str]]
    renewed: NotRequired[list[str]]
    id: NotRequired[int]


class WorkerStatus(TypedDict):
    """A worker in `relay status`.

    `drain_left_s`: how long its sessions may go on; None is no limit.
    """

    slot: int
    pid: int
    generation: int
    phase: str
    age_s: float
    heartbeat_age_s: float
    connections: int
    drain_left_s: float | None


class SlotStatus(TypedDict):
    """A slot in `relay status`."""

    slot: int
    parked: bool
    early_deaths: int
    next_start_in_s: float


class EndpointReply(TypedDict):
    """An address of a backend with a name. A host name has priority and weight 0."""

    address: str
    priority: int
    weight: int


class NameReply(TypedDict):
    """A name in the address of a backend.

    `gone`: it was looked up and has no address. `failing`: the last look-up failed, and
    `endpoints` are of an earlier one.
    """

    name: str
    endpoints: list[EndpointReply]
    gone: bool
    failing: bool


class StatusReply(TypedDict):
    """The reply to `status`. `not_ready` is what /readyz says, "" if it says yes."""

    ok: Literal[True]
    version: str
    openssl: str
    config: str
    state: str
    drains_in_s: float | None  # in state leaving: how long clients are still accepted
    not_ready: NotRequired[str]
    generation: int
    started_at: float
    supervisor: ProcessStatus
    workers: list[WorkerStatus]
    slots: list[SlotStatus]
    listeners: dict[str, list[str]]
    admin: str
    checker: ProcessStatus
    names: list[NameReply]
    disabled: list[DisabledFact]
    crls: list[CrlFact]
    fetches: list[FetchEntry]
    staples: list[StapleFact]
    pending: list[PendingFact]
    watcher: ProcessStatus
    last_reload: LastReload
    upgraded: NotRequired[UpgradeFact | None]
    canary: CanaryStatus | None
    last_minute: NotRequired[LastMinute]
    short_pools: NotRequired[list[ShortPool]]
    certificates: NotRequired[list[EndingCertificate]]  # those that end first
    connections_allowed: NotRequired[int]  # of one worker


class UpgradeReply(TypedDict):
    """The reply to `upgrade`, and to a `reload` that waited for one."""

    ok: Literal[True]
    before: str
    version: str
    generation: int


class LastReload(TypedDict):
    """The last reload: whether it succeeded, and when one last did (Unix seconds)."""

    ok: bool
    at: float
    why: NotRequired[str]  # it was refused


class ReloadReply(TypedDict):
    """The reply to `reload`, sent when the new workers serve.

    `renewed`: no setting has changed, and these files were renewed in place. `warning`:
    what a canary could not tell.
    """

    ok: Literal[True]
    generation: int
    renewed: NotRequired[list[str]]
    warning: NotRequired[str]


class ShutdownReply(TypedDict):
    """The reply to `drain` and `stop`."""

    ok: Literal[True]
    supervisor: ProcessStatus


class OverrideReply(TypedDict):
    """The reply to `override`. `now` is the override in words."""

    ok: Literal[True]
    pool: str
    backend: str
    now: str
    warning: NotRequired[str]


class KickFact(TypedDict):
    """A client that is kept out. `kind` is address, fingerprint or name."""

    target: str
    kind: str
    by: str
    why: str
    left_s: float


class KickReply(TypedDict):
    """The reply to `kick`, sent when the workers have ended the client's sessions.

    `ended` is the number of these sessions. `left_s` is for how long the client is kept
    out, 0 if it is not. `silent` are the pids of the workers that have not answered.
    `lifted`: an earlier kick of this client no longer counts.
    """

    ok: Literal[True]
    target: str
    kind: str
    ended: int
    left_s: float
    lifted: bool
    silent: list[int]


class KicksReply(TypedDict):
    """The reply to `kicks`: who is kept out now."""

    ok: Literal[True]
    kicks: list[KickFact]


class BackendSettings(TypedDict):
    """A backend's mode and weight as configured."""

    mode: str
    weight: int


class BackendOverride(TypedDict):
    """A backend's overridden settings; None for one that is as configured."""

    mode: OverriddenSetting | None
    weight: OverriddenSetting | None


class BackendReply(TypedDict):
    """Everything that is known of a backend. Instants are Unix seconds.

    `load` is the backend's part, 0 to 1, of the connections that are open to its pool.
    """

    backend: str
    address: str
    endpoints: list[EndpointReply]
    name: str
    configured: BackendSettings
    mode: str
    weight: int
    status: str
    up: bool
    disabled: str
    elected: int
    elected_by: dict[str, int]
    busy: int
    load: float
    to_bytes: int
    from_bytes: int
    retry_until: float | None
    health: CheckedHealth
    overridden: bool
    override: BackendOverride


class PoolReply(TypedDict):
    """A pool and its backends."""

    name: str
    balance: str
    sticky: str
    checked: bool
    busy: int
    disabled: str
    backends: list[BackendReply]


class DisabledRoute(TypedDict):
    """A route that cannot work."""

    listener: str
    route: str
    why: str


class PoolsReply(TypedDict):
    """Every pool and backend. `inactive`: overrides of backends that do not exist."""

    at: float
    pools: list[PoolReply]
    routes_disabled: list[DisabledRoute]
    inactive: list[OverrideFact]


class BackendsReply(PoolsReply):
    """The reply to `backends`. `version` and `overrides` are what `apply` takes."""

    ok: Literal[True]
    version: int
    overrides: list[OverrideFact]


Reply = (
    StatusReply
    | ReloadReply
    | UpgradeReply
    | ShutdownReply
    | OverrideReply
    | ApplyReply
    | BackendsReply
    | KickReply
    | KicksReply
    | FailureReply
)

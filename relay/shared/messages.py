"""The JSON that the processes of one relay exchange, as types for both ends.

    facts            supervisor to admin process, published with the scoreboard
    greeting         supervisor to admin process, the first line of their channel
    endpoints.json   supervisor to scripts
    health.json      checker to supervisor and admin process

The supervisor's replies to commands are in `shared.replies`.

Never: checks what was received. A process that was taken over can send anything, so the
reader checks each value itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, cast

# Facts.


class CertificateFact(TypedDict):
    """A configured certificate. `subject` is RFC 4514, `not_after` Unix seconds."""

    file: str
    subject: str
    not_after: float


class DisabledFact(TypedDict):
    """A route, pool or backend that cannot work.

    `parent` is the listener of a route, the pool of a backend, and "" for a pool.
    """

    kind: Literal["route", "pool", "backend"]
    parent: str
    name: str
    why: str


class StapleFact(TypedDict):
    """The OCSP response of a route.

    `next_update` is Unix seconds, 0 while nothing is stapled; then `why` says why.
    """

    listener: str
    route: str
    file: str
    next_update: float
    why: str


class CrlFact(TypedDict):
    """A revocation list in use. Instants are Unix seconds.

    Without `next_update` it does not expire; otherwise it counts for `grace_s` more.
    """

    issuer: str
    source: str
    number: int | None
    this_update: float
    next_update: float | None
    entries: int
    grace_s: float


class PendingFact(TypedDict):
    """A file that differs from what is in use. `since` is Unix seconds."""

    file: str
    why: str
    since: float


class BackendFact(TypedDict):
    """A backend as configured."""

    backend: str
    address: str
    name: str
    weight: int
    standby: bool


class PoolFact(TypedDict):
    """A pool as configured. `checked`: it has health checks."""

    name: str
    balance: str
    sticky: str
    checked: bool
    backends: list[BackendFact]


class OverriddenSetting(TypedDict):
    """What an operator has set. `until` is Unix seconds, None until it is cleared.

    `beneath` is the setting that holds again after `until`.
    """

    value: str | int
    by: str
    since: float
    until: float | None
    beneath: OverriddenSetting | None


class OverrideFact(TypedDict):
    """What operators have changed about one backend."""

    pool: str
    backend: str
    mode: OverriddenSetting | None
    weight: OverriddenSetting | None


class ConfigFacts(TypedDict):
    """Facts of one configuration. A route is its listener, its label and its pool.

    `list_files` are the files with revocation lists.
    """

    certificates: list[CertificateFact]
    list_files: list[str]
    routes: list[tuple[str, str, str]]
    pools: list[PoolFact]


class RunningFacts(TypedDict):
    """Facts that change while a configuration is used.

    `state` is starting, serving or draining; `started_at` is Unix seconds.
    `last_reload_at` is when the last reload or renewal succeeded. All slots together
    have the `connections_allowed`.
    """

    generation: int
    version: str
    openssl: str
    started_at: float
    state: str
    slots: int
    connections_allowed: int
    overrides: list[OverrideFact]
    disabled: list[DisabledFact]
    crls: list[CrlFact]
    staples: list[StapleFact]
    pending: list[PendingFact]
    last_reload_ok: bool
    last_reload_at: float


class Facts(ConfigFacts, RunningFacts):
    """Everything that the supervisor publishes beside the cells."""


def facts_of(published: Mapping[str, Any]) -> Facts:
    """The facts, with a default for each that is not published yet."""
    unpublished = Facts(
        certificates=[],
        list_files=[],
        routes=[],
        pools=[],
        generation=0,
        version="",
        openssl="",
        started_at=0.0,
        state="starting",
        slots=0,
        connections_allowed=0,
        overrides=[],
        disabled=[],
        crls=[],
        staples=[],
        pending=[],
        last_reload_ok=True,
        last_reload_at=0.0,
    )
    return cast("Facts", {**unpublished, **published})


class Greeting(TypedDict):
    """The settings of `[admin]`, which the admin process cannot read itself."""

    listen: str
    hosts: list[str]
    user: str
    password: str
    state_dir: str


# Files.


class ProcessStatus(TypedDict):
    """A process; `pid` is None while it does not run."""

    pid: int | None


class WorkerEndpoint(TypedDict):
    """A worker in endpoints.json."""

    slot: int
    pid: int


class Endpoints(TypedDict):
    """endpoints.json: every listener with its addresses; `admin` is "" when off."""

    generation: int
    supervisor: ProcessStatus
    workers: list[WorkerEndpoint]
    listeners: dict[str, list[str]]
    admin: str


class CheckedHealth(TypedDict):
    """What operators see of a backend's health checks. Instants are Unix seconds."""

    state: str
    since: float | None
    reason: str | None
    remedy: str | None
    last_check_at: float | None
    duration_s: float | None
    tls_version: str | None
    not_after: float | None


class HealthEntry(CheckedHealth):
    """A backend's entry in health.json."""

    in_a_row: int
    address: str


class FetchEntry(TypedDict):
    """A URL of a revocation list in health.json.

    `error` is empty if the last fetch succeeded. `confirmed_at` is when the server last
    had the list that is kept.
    """

    url: str
    error: str
    failing_since: float | None
    confirmed_at: float | None


class HostEntry(TypedDict):
    """A backend's host name in health.json, and the resolver's last answer."""

    host: str
    addresses: list[str]
    answered_at: float | None
    error: str

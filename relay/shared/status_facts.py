"""Parts of the reply to `status`: what happened lately, and what needs attention.

Never: checks what was received.
"""

from __future__ import annotations

from typing import TypedDict


class LastMinute(TypedDict):
    """What was counted in the last `seconds`: about 60, or fewer after a start.

    `refused` are clients and `backend_failures` handshakes with backends, by reason.
    `ended` are sessions that ended otherwise than by themselves or by a time limit.
    `probes` are clients that left before they were admitted. `restarts` counts workers
    that ended unexpectedly within the last hour.
    """

    seconds: float
    clients: int
    admitted: int
    resumed: int
    probes: int
    refused: dict[str, int]
    backend_failures: dict[str, int]
    ended: dict[str, int]
    log_lines_dropped: int
    restarts: int


class DownBackend(TypedDict):
    """A backend that gets no new sessions, and why."""

    backend: str
    why: str


class ShortPool(TypedDict):
    """A pool of which some backends get no new sessions."""

    pool: str
    up: int
    backends: int
    down: list[DownBackend]


class EndingCertificate(TypedDict):
    """A configured certificate. `subject` is RFC 4514, `not_after` Unix seconds."""

    file: str
    subject: str
    not_after: float


class UpgradeFact(TypedDict):
    """The version before the last upgrade, and when it was replaced (Unix seconds)."""

    before: str
    at: float

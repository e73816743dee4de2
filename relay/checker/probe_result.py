"""The stages of a probe, and its result.

Never: runs a probe.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from relay.checker.failure import CheckFailure
from relay.shared.label_values import CONNECT_FAILED, HANDSHAKE_FAILED, HTTP_FAILED


class Stage(Enum):
    """How far a probe is."""

    CONNECT = auto()
    STARTTLS = auto()
    HANDSHAKE = auto()
    LISTEN = auto()
    REQUEST = auto()
    RESPONSE = auto()


# The metric's label of a failure in each stage.
LABELS = {
    Stage.CONNECT: CONNECT_FAILED,
    Stage.STARTTLS: HANDSHAKE_FAILED,
    Stage.HANDSHAKE: HANDSHAKE_FAILED,
    Stage.LISTEN: HANDSHAKE_FAILED,
    Stage.REQUEST: HTTP_FAILED,
    Stage.RESPONSE: HTTP_FAILED,
}


class ProbeResult(NamedTuple):
    """The result of a probe. `failure` is None if the endpoint passed.

    `label` is the metric's for a failure; `detail` is the result in words.
    """

    failure: CheckFailure | None
    label: str
    detail: str
    ended_at: float
    tls_version: str
    not_after_at: float

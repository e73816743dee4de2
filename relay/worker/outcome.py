"""How a handshake and a session went, as the log line says it.

Never: acts.
"""

from __future__ import annotations

from typing import NamedTuple

from relay.errors import Reason, Side


class Handshake(NamedTuple):
    """What a TLS handshake agreed on; `seconds` is None until it is done."""

    version: str = ""
    cipher: str = ""
    group: str = ""
    alpn: str = ""
    resumed: bool = False
    seconds: float | None = None


class Outcome(NamedTuple):
    """Why the session ends or its backend failed, on which side, and the details."""

    reason: Reason | None = None
    side: Side | None = None
    detail: str = ""


NO_HANDSHAKE = Handshake()
NO_OUTCOME = Outcome()

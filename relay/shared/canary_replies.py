"""The replies of the supervisor about a canary, as types for both ends.

Never: checks what was received.
"""

from __future__ import annotations

from typing import Literal, TypedDict


class CanaryStatus(TypedDict):
    """A canary in `relay status`: clients so far, here and at the other workers."""

    generation: int
    slot: int
    left_s: float
    clients: int
    refused: int
    others_clients: int
    others_refused: int


class EndCanaryReply(TypedDict):
    """The reply to `end_canary`: the canary was promoted, or is withdrawn."""

    ok: Literal[True]
    generation: int

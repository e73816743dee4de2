"""The reply to `relay apply`, as a type for both ends.

Never: checks what was received.
"""

from __future__ import annotations

from typing import Literal, TypedDict


class AppliedChange(TypedDict):
    """A backend whose override `apply` has changed, in words."""

    pool: str
    backend: str
    before: str
    now: str


class ApplyReply(TypedDict):
    """The reply to `apply`. `overrides` is their number afterwards."""

    ok: Literal[True]
    changes: list[AppliedChange]
    overrides: int
    warnings: list[str]

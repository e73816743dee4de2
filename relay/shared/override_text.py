"""An override in words, for the log and for commands."""

from __future__ import annotations

from datetime import UTC, datetime

from relay.core.overrides import Override, Setting


def describe(override: Override) -> str:
    """For example "drain until 2026-11-28T03:00:00Z, weight 20"."""
    parts = [_describe_setting("", override.mode), _describe_setting("weight ", override.weight)]
    return ", ".join(filter(None, parts)) or "as configured"


def _describe_setting(what: str, setting: Setting | None) -> str:
    if setting is None:
        return ""
    until = (
        f" until {datetime.fromtimestamp(setting.until_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
        if setting.until_at is not None
        else ""
    )
    return f"{what}{setting.value}{until}"

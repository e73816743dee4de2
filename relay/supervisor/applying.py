"""`relay apply`: makes the overrides what a file says, all at once or not at all.

Never: reads the file; the command sends what is in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from relay.core.overrides import BY_CHARACTERS, BackendKey, Override
from relay.core.untrusted import clip
from relay.shared.apply_replies import AppliedChange, ApplyReply
from relay.shared.override_text import describe
from relay.shared.replies import FailureReply
from relay.shared.wanted_overrides import Wanted, merge_setting, parse_wanted
from relay.supervisor.control import EXIT_USAGE, refused
from relay.supervisor.override_store import OverrideStore

MOST_PROBLEMS = 20


class Applying:
    """Answers `apply` requests."""

    def __init__(self, store: OverrideStore) -> None:
        self._store = store

    def answer(self, request: dict[str, Any]) -> ApplyReply | FailureReply:
        """Apply the document of the request, or with `dry_run` only say what changes.

        With `merge`, backends without an entry keep their overrides. With `strict`, a
        backend that the configuration does not have refuses everything.
        """
        by = request.get("by") or "unknown"
        if not isinstance(by, str):
            return refused("by must be text that says who asks")
        by = clip(by, BY_CHARACTERS)
        now_at = time.time()
        wanted = parse_wanted(request.get("document"), by, now_at)
        unknown = [each for each in wanted.overrides if each not in self._store.backends]
        problems = wanted.problems
        if request.get("strict") is True:
            problems += self._unknown(unknown)
        if problems:
            return _refused(problems)
        after = self._after(wanted, merge=request.get("merge") is True)
        before = dict(self._store.overrides)
        changed = {
            key: after.get(key, Override())
            for key in sorted({*before, *after})
            if before.get(key, Override()) != after.get(key, Override())
        }
        warnings = [f"{why}; it is kept, without an effect" for why in self._unknown(unknown)]
        warnings += [
            f"{_name(key)}: an end is in the past, so that is not applied" for key in wanted.ended
        ]
        if changed and request.get("dry_run") is not True:
            warning = self._store.change_all(changed, by)
            warnings += [warning] if warning else []
        changes = [_change(key, before.get(key), now) for key, now in changed.items()]
        return {"ok": True, "changes": changes, "overrides": len(after), "warnings": warnings}

    def _after(self, wanted: Wanted, *, merge: bool) -> dict[BackendKey, Override]:
        """All overrides afterwards."""
        before = self._store.overrides
        found = dict(before) if merge else {}
        for key, override in wanted.overrides.items():
            old = before.get(key, Override())
            mode = override.mode
            configured = self._store.backends.get(key)
            if mode is not None and mode.until_at is None and mode.value == configured:
                mode = None  # as a change by `relay backend`: not an override
            new = Override(
                merge_setting(old.mode, mode), merge_setting(old.weight, override.weight)
            )
            found[key] = new
            if new == Override():
                del found[key]
        return found

    def _unknown(self, keys: list[BackendKey]) -> Iterator[str]:
        pools = {pool for pool, _ in self._store.backends}
        for key in keys:
            what = "backend" if key[0] in pools else "pool"
            yield f"{_name(key)}: the configuration has no such {what}"


def _change(key: BackendKey, before: Override | None, now: Override) -> AppliedChange:
    pool, backend = key
    return {
        "pool": pool,
        "backend": backend,
        "before": describe(before or Override()),
        "now": describe(now),
    }


def _name(key: BackendKey) -> str:
    return clip("/".join(key), 256)


def _refused(problems: list[str]) -> FailureReply:
    more = len(problems) - MOST_PROBLEMS
    shown = problems[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
    return {
        "ok": False,
        "code": EXIT_USAGE,
        "error": "nothing was changed; correct the file, then apply it again",
        "problems": shown,
    }

"""Carries out what `relay` commands ask for over the control socket.

Never: decides who may ask (that is `relay.supervisor.control`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from relay.supervisor.admin_channel import BACKEND_COMMANDS
from relay.supervisor.applying import Applying
from relay.supervisor.canary import Canary
from relay.supervisor.checker_process import CheckerProcess
from relay.supervisor.control import Client, refused
from relay.supervisor.kicks import Kicks
from relay.supervisor.override_store import OverrideStore
from relay.supervisor.process import EXIT_CANNOT_START
from relay.supervisor.reload import Reloads
from relay.supervisor.status import Status

LONGEST_CANARY_S = 3600


class Commands:
    """`end` carries out `drain` and `stop`; `upgrade` replaces the program."""

    def __init__(
        self,
        overrides: OverrideStore,
        status: Status,
        reloads: Reloads,
        kicks: Kicks,
        checker: CheckerProcess,
        canary: Canary,
        end: Callable[[str], None],
        upgrade: Callable[[Client | None], None],
    ) -> None:
        self._overrides = overrides
        self._applying = Applying(overrides)
        self._status = status
        self._reloads = reloads
        self.kicks = kicks
        self._checker = checker
        self._canary = canary
        self._end = end
        self._upgrade = upgrade

    def carry_out(self, request: dict[str, Any], client: Client) -> None:
        """Carry out one request, and answer the client now or later."""
        command = request["command"]
        if command in BACKEND_COMMANDS:
            client.reply(self._overrides.answer(request))
        elif command == "apply":
            client.reply(self._applying.answer(request))
        elif command == "status":
            client.reply(self._status.reply(lately=bool(request.get("lately"))))
        elif command == "reload":
            self._checker.fetch_lists()
            self._reload(request, client)
        elif command == "end_canary":
            self._end_canary(request, client)
        elif command == "upgrade":
            self._upgrade(client)
        elif command in ("kick", "kicks"):
            self.kicks.answer(request, client)
        else:
            # With `hold` the connection stays open. When it closes, the client knows
            # that the relay has ended.
            client.reply({"ok": True, "supervisor": {"pid": os.getpid()}}, hold=True)
            self._end(command)

    def _reload(self, request: dict[str, Any], client: Client) -> None:
        canary_s = request.get("canary_s") or 0.0
        if not isinstance(canary_s, int | float) or not 0 <= canary_s <= LONGEST_CANARY_S:
            client.reply(
                refused(f"a canary may be tried for at most {LONGEST_CANARY_S} s, not {canary_s}")
            )
            return
        problem = self._canary.problem if canary_s else ""
        if problem:
            client.reply({"ok": False, "code": EXIT_CANNOT_START, "error": problem})
            return
        self._reloads.request(client, float(canary_s))

    def _end_canary(self, request: dict[str, Any], client: Client) -> None:
        promote = request.get("how") == "promote"
        problem = self._canary.promote() if promote else self._canary.withdraw()
        if problem:
            client.reply({"ok": False, "code": EXIT_CANNOT_START, "error": problem})
        else:
            client.reply({"ok": True, "generation": self._canary.number})

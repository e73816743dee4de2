"""Carries out what `relay` commands ask for over the control socket.

Never: decides who may ask (that is `relay.supervisor.control`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from relay.core.fleet_view import Shutdown
from relay.supervisor.admin_channel import BACKEND_COMMANDS
from relay.supervisor.checker_process import CheckerProcess
from relay.supervisor.control import Client
from relay.supervisor.kicks import Kicks
from relay.supervisor.override_store import OverrideStore
from relay.supervisor.reload import Reloads
from relay.supervisor.status import Status


class Commands:
    """`end` ends the relay, for the reason that it is given; `upgrade` replaces it."""

    def __init__(
        self,
        overrides: OverrideStore,
        status: Status,
        reloads: Reloads,
        kicks: Kicks,
        checker: CheckerProcess,
        end: Callable[[Shutdown, str], None],
        upgrade: Callable[[Client | None], None],
    ) -> None:
        self._overrides = overrides
        self._status = status
        self._reloads = reloads
        self.kicks = kicks
        self._checker = checker
        self._end = end
        self._upgrade = upgrade

    def carry_out(self, request: dict[str, Any], client: Client) -> None:
        """Carry out one request, and answer the client now or later."""
        command = request["command"]
        if command in BACKEND_COMMANDS:
            client.reply(self._overrides.answer(request))
        elif command == "status":
            client.reply(self._status.reply())
        elif command == "reload":
            self._checker.fetch_lists()
            self._reloads.request(client)
        elif command == "upgrade":
            self._upgrade(client)
        elif command in ("kick", "kicks"):
            self.kicks.answer(request, client)
        else:
            # With `hold` the connection stays open. When it closes, the client knows
            # that the relay has ended.
            client.reply({"ok": True, "supervisor": {"pid": os.getpid()}}, hold=True)
            self._end(Shutdown.DRAIN if command == "drain" else Shutdown.NOW, f"relay {command}")

"""Restores what is deleted from the state directory while the relay runs.

A cleaner of temporary files may delete the control socket or the whole directory. The
relay would still serve, but `relay status`, `reload` and `stop` would no longer reach
it. What cannot be restored is logged once and tried again every second; the relay
serves without it.

Never: waits; uses a file that another relay or another user has put there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from relay.errors import StartupError
from relay.supervisor.admin_process import AdminProcess
from relay.supervisor.checker_process import CheckerProcess, make_health_directory
from relay.supervisor.control import ControlServer
from relay.supervisor.control_client import control_path
from relay.supervisor.override_store import OverrideStore
from relay.supervisor.privileges import Identity
from relay.supervisor.state_dir import StateDir
from relay.supervisor.unix_sockets import open_control

EVERY_S = 1.0  # a check is a few stat calls

log = logging.getLogger(__name__)


class Upkeep:
    """The owners of files in the state directory, in the order of restoring."""

    def __init__(
        self,
        state: StateDir,
        control: ControlServer,
        overrides: OverrideStore,
        admin: AdminProcess,
        checker: CheckerProcess,
    ) -> None:
        self._state = state
        self._control = control
        self._overrides = overrides
        self._admin = admin
        self._checker = checker
        self._check_at = 0.0
        self._failures: dict[str, str] = {}
        """What is missing, and why it cannot be restored; already logged."""

    def step(self, now: float, identity: Identity) -> None:
        """Check, when it is time."""
        if now >= self._check_at:
            self.look(identity)

    def look(self, identity: Identity) -> None:
        """Restore what is missing."""
        self._check_at = time.monotonic() + EVERY_S
        if not self._try("the state directory", self._state.restore):
            return  # without it, nothing can be created in it
        self._try("the control socket", self._restore_control)
        self._try("endpoints.json", self._state.restore_endpoints)
        self._try("overrides.json", self._overrides.restore)
        self._try("the directory of health.json", lambda: self._restore_health(identity))
        self._try("the admin process's socket", self._admin.restore)

    def _try(self, what: str, restore: Callable[[], bool]) -> bool:
        """True if the file is there now. `restore` returns whether it was missing."""
        try:
            made = restore()
        except (OSError, StartupError) as error:
            why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            if self._failures.get(what) != why:
                self._failures[what] = why
                log.error(
                    "%s: %s was deleted or is out of date and cannot be restored: %s;"
                    " the relay serves without it, and tries again every second",
                    self._state.path,
                    what,
                    why,
                )
            return False
        self._failures.pop(what, None)
        if made:
            log.warning(
                "%s: %s was deleted or was out of date, and has been restored;"
                " find out what deletes or blocks it",
                self._state.path,
                what,
            )
        return True

    def _restore_control(self) -> bool:
        path = control_path(self._state.path)
        if self._control.is_at(path):
            return False
        self._control.listen_on(open_control(path))
        return True

    def _restore_health(self, identity: Identity) -> bool:
        if not make_health_directory(self._state.path, identity):
            return False
        # Both have the old directory open, so they must start again.
        self._checker.renew()
        self._admin.renew()
        return True

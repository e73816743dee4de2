"""What `relay import-httpd` has to know about this machine.

Never: changes anything.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
from functools import cached_property
from pathlib import Path

from relay.errors import ConfigError, StartupError
from relay.importer.disk import Disk

_MOST_FILES = 1_000


class ThisMachine:
    """The `Machine` of `relay.importer.machine`."""

    def __init__(self) -> None:
        self._disk = Disk()

    @cached_property
    def has_ipv6(self) -> bool:
        """Whether it can listen on IPv6 addresses."""
        return self._binds(socket.AF_INET6, "::1")

    @property
    def is_root(self) -> bool:
        """Whether the import runs as root, as relay then probably will."""
        return os.geteuid() == 0

    def has_user(self, name: str) -> bool:
        """Whether there is such a user."""
        with contextlib.suppress(KeyError, ValueError):
            return bool(pwd.getpwnam(name))
        return False

    def has_group(self, name: str) -> bool:
        """Whether there is such a group."""
        with contextlib.suppress(KeyError, ValueError):
            return bool(grp.getgrnam(name))
        return False

    def has_address(self, host: str) -> bool:
        """Whether this is an address of this machine."""
        return self._binds(socket.AF_INET6 if ":" in host else socket.AF_INET, host)

    def can_log(self, path: str, user: str) -> bool:
        """Whether this user, or "" for one's own, can write an access log there."""
        from relay.config.model import Relay
        from relay.logs.access_log import check_access_log
        from relay.supervisor.privileges import acting_as, find_identity

        try:
            with acting_as(find_identity(Relay(user=user or ("root" if self.is_root else "")))):
                return not check_access_log(path, 43_200, "json")
        except (StartupError, ConfigError, OSError, ValueError):
            return False

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises OSError."""
        return self._disk.read(path)

    def files_in(self, path: str) -> list[str]:
        """The files in a directory, sorted; none if it cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            found = sorted(str(each) for each in Path(path).iterdir() if each.is_file())
            return found[:_MOST_FILES]
        return []

    @staticmethod
    def _binds(family: int, host: str) -> bool:
        with contextlib.suppress(OSError, ValueError):
            with socket.socket(family) as probe:
                probe.bind((host, 0))
            return True
        return False

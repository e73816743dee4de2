"""What the importer has to know about this machine and its files.

Never: looks itself; the command does, so that everything else here is a function.
"""

from __future__ import annotations

from typing import Protocol


class Source(Protocol):
    """Where files come from."""

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises OSError."""

    def expand(self, pattern: str) -> list[str]:
        """The files that a pattern or a directory stands for, sorted."""

    def exists(self, path: str) -> bool:
        """Whether a file or directory is there."""


class Machine(Protocol):
    """Answers of the machine on which the import runs."""

    @property
    def has_ipv6(self) -> bool:
        """Whether it can listen on IPv6 addresses."""

    @property
    def is_root(self) -> bool:
        """Whether the import runs as root, as relay then probably will."""

    def has_user(self, name: str) -> bool:
        """Whether there is such a user."""

    def has_group(self, name: str) -> bool:
        """Whether there is such a group."""

    def has_address(self, host: str) -> bool:
        """Whether this is an address of this machine."""

    def can_log(self, path: str, user: str) -> bool:
        """Whether this user, or "" for one's own, can write an access log there."""

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises OSError."""

    def files_in(self, path: str) -> list[str]:
        """The files in a directory, sorted; none if it cannot be read."""

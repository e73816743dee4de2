"""Users of this machine, by name and by number.

Never: asks a directory service in a worker (`shown_user` reads one local file).
"""

from __future__ import annotations

import pwd
from pathlib import Path

# What the kernel says of a user that has no number in this user namespace (the default
# of /proc/sys/kernel/overflowuid).
OVERFLOW_UID = 65_534
_LOCAL = Path("/etc/passwd")


def find_uid(user: str) -> int | None:
    """The id of a user that is given by name or by number; None if there is none."""
    if user.isascii() and user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def shown_user(uid: int) -> str:
    """A user in a message: its number, and its name if it is a local user."""
    if uid == 0:
        return "root (user id 0)"
    try:
        lines = _LOCAL.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        fields = line.split(":")
        if len(fields) > 2 and fields[2] == str(uid):
            return f"{fields[0]} (user id {uid})"
    return f"user id {uid}"

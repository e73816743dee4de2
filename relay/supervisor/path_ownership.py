"""Whether a path leads only through what this user and root control.

As sshd's StrictModes: a directory that another user owns or may write can be renamed, and
what is in it replaced. A directory with the sticky bit (/tmp) may stand on the way, for there
users can only rename what is their own, but nothing that is trusted may lie in it directly. A
group counts as its members, so that a group with one member is that user.

Never: follows a symbolic link that another user has made; changes anything.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MOST_LINKS = 40
_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Doubt:
    """Who else could change what a path leads to: where on the way, and what to do about it."""

    where: Path
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where} {self.what}"


def doubt_of(path: Path) -> Doubt | None:
    """The first step on an absolute path, to a directory or a file, that another user could change.

    What does not exist yet is not looked at. Raises OSError where the way cannot be walked.
    """
    trusted = frozenset((0, os.geteuid()))
    for step in _walk(path):
        mode = step.status.st_mode
        if step.status.st_uid not in trusted:
            return _foreign(step.place, step.status)
        if stat.S_ISLNK(mode):
            continue  # its mode means nothing
        if mode & stat.S_ISVTX and stat.S_ISDIR(mode) and not step.is_end:
            continue
        if doubt := _writable(step.place, step.status, trusted):
            return doubt
    return None


@dataclass(frozen=True, slots=True)
class _Step:
    place: Path
    status: os.stat_result
    is_end: bool


def _walk(path: Path) -> Iterator[_Step]:
    """Every directory and every symbolic link on the way, and what stands at its end."""
    left = list(reversed(path.parts))
    here = _ROOT
    links = 0
    while left:
        part = left.pop()
        place = _ROOT if part == "/" else here.parent if part == ".." else here / part
        try:
            status = place.lstat()
        except FileNotFoundError:
            return
        is_link = stat.S_ISLNK(status.st_mode)
        yield _Step(place, status, is_end=not left and not is_link)
        if not is_link:
            here = place
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        left += reversed(place.readlink().parts)


def _foreign(place: Path, status: os.stat_result) -> Doubt:
    kind = "a symbolic link of" if stat.S_ISLNK(status.st_mode) else "owned by"
    what = f"is {kind} {user_name(status.st_uid)}, who could put anything in its place"
    us = user_name(os.geteuid())
    return Doubt(place, what, f"chown {'-h ' if kind.startswith('a') else ''}{us} {place}")


def _writable(place: Path, status: os.stat_result, trusted: frozenset[int]) -> Doubt | None:
    remedy = f"chmod go-w {place}"
    if status.st_mode & stat.S_IWOTH:
        return Doubt(place, "can be written by everybody on this machine", remedy)
    if status.st_mode & stat.S_IWGRP and (other := _other_member(status.st_gid, trusted)):
        return Doubt(place, f"can be written by its group, to which {other} belongs", remedy)
    return None


def _other_member(gid: int, trusted: frozenset[int]) -> str:
    """A member of the group who is not trusted, "" when there is none."""
    if gid == 0:
        return ""
    try:
        members = list(grp.getgrgid(gid).gr_mem)
    except KeyError:
        return "nobody knows who"
    members += [each.pw_name for each in pwd.getpwall() if each.pw_gid == gid]
    for name in members:
        try:
            uid = pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
        if uid not in trusted:
            return name
    return ""


def user_name(uid: int) -> str:
    """The name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"

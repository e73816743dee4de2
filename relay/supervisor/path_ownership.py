"""Whether a user other than root and our own could change what a path leads to.

Like sshd's StrictModes: a user who owns a directory or may write to it can rename and
replace what is in it. A directory with the sticky bit, such as /tmp, is accepted on the
way, because users can only rename their own files in it. It is not accepted as the end
of the path. A group counts as its members, so a group with one member is that user.

Engines of containers mount volumes that every user may write, and a process without
root cannot change that. Such a volume is accepted on the way, too, where this process
is alone: in a container whose process 1 has the same user.

Never: follows a symbolic link of another user; changes anything.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

_MAX_LINKS = 40  # as the kernel allows
_FIRST_PROCESS = Path("/proc/1/status")
_MOUNTS = Path("/proc/self/mountinfo")
_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class WeakStep:
    """A step of a path that another user could change, and what to do about it."""

    where: Path
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where} {self.what}"


def find_weak_step(path: Path) -> WeakStep | None:
    """The first step of an absolute path that another user could change.

    Steps that do not exist yet are not checked. Raises OSError when one cannot be read.
    """
    trusted = frozenset((0, os.geteuid()))
    for step in _walk(path):
        mode = step.status.st_mode
        if step.status.st_uid not in trusted:
            return _foreign(step.path, step.status)
        if stat.S_ISLNK(mode):
            continue  # the mode of a symbolic link has no meaning
        if mode & stat.S_ISVTX and stat.S_ISDIR(mode) and not step.is_end:
            continue
        if weak := _writable(step.path, step.status, trusted):
            if not _is_lone_volume(step.path):
                return weak
            if step.is_end:
                return replace(weak, remedy=f"name a new directory below {step.path}")
    return None


@dataclass(frozen=True, slots=True)
class _Step:
    path: Path
    status: os.stat_result
    is_end: bool


def _walk(path: Path) -> Iterator[_Step]:
    """Every directory and symbolic link on the way, and what the path ends at."""
    left = list(reversed(path.parts))
    here = _ROOT
    links = 0
    while left:
        part = left.pop()
        step = _ROOT if part == "/" else here.parent if part == ".." else here / part
        try:
            status = step.lstat()
        except FileNotFoundError:
            return
        is_link = stat.S_ISLNK(status.st_mode)
        yield _Step(step, status, is_end=not left and not is_link)
        if not is_link:
            here = step
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        left += reversed(step.readlink().parts)


def _foreign(path: Path, status: os.stat_result) -> WeakStep:
    is_link = stat.S_ISLNK(status.st_mode)
    kind = "a symbolic link of" if is_link else "owned by"
    what = f"is {kind} {_user_name(status.st_uid)}, who could replace it"
    option = "-h " if is_link else ""
    return WeakStep(path, what, f"chown {option}{_user_name(os.geteuid())} {path}")


def _writable(path: Path, status: os.stat_result, trusted: frozenset[int]) -> WeakStep | None:
    remedy = f"chmod go-w {path}"
    if status.st_mode & stat.S_IWOTH:
        return WeakStep(path, "can be written by every user of this machine", remedy)
    if status.st_mode & stat.S_IWGRP and (other := _other_member(status.st_gid, trusted)):
        return WeakStep(path, f"can be written by its group, which includes {other}", remedy)
    return None


def _other_member(gid: int, trusted: frozenset[int]) -> str:
    """A member of the group that is not trusted, "" when there is none."""
    if gid == 0:
        return ""
    try:
        members = list(grp.getgrgid(gid).gr_mem)
    except KeyError:
        return "unknown users"  # a group without a name
    members += [each.pw_name for each in pwd.getpwall() if each.pw_gid == gid]
    for name in members:
        try:
            uid = pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
        if uid not in trusted:
            return name
    return ""


def _is_lone_volume(path: Path) -> bool:
    """Whether this is a volume of a container in which only this user has processes.

    Root is process 1 of a machine. It is not that of a container which gives up root
    before it starts. Other users could only be there if its operator adds them.
    """
    own_uid = os.geteuid()
    if own_uid == 0:
        return False
    try:
        first = _FIRST_PROCESS.read_text().partition("\nUid:")[2].split()[:4]
        mounts = [line.split()[4] for line in _MOUNTS.read_text().splitlines()]
    except (OSError, IndexError):
        return False
    # The kernel writes a space as \040.
    return first == [str(own_uid)] * 4 and str(path).replace(" ", r"\040") in mounts


def _user_name(uid: int) -> str:
    """The name of a user, or its number when it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"

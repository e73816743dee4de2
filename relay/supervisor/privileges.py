"""Which users the workers and the admin process run as, and how they become them.

The user is determined before anything starts. A child changes to it right after fork,
for good.

Never: lets a worker run as root because a setting is missing.
"""

from __future__ import annotations

import ctypes
import grp
import importlib.util
import logging
import os
import pwd
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from relay.config.model import Relay
from relay.errors import StartupError
from relay.sandbox.confinement import hide_memory

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 15, 38
_CAPABILITY_VERSION_3 = 0x20080522
ADMIN_USERS = ("relay-admin", "nobody", "daemon")

_libc = ctypes.CDLL(None, use_errno=True)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user with its groups. `change` is false if this process has it already."""

    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    change: bool


def find_identity(settings: Relay) -> Identity:
    """The workers' user and group: as configured, or this process's own.

    Raises StartupError, which begins with the key path, if this process cannot become
    them.
    """
    own_uid = os.geteuid()
    if not settings.user and own_uid == 0:
        raise StartupError(
            "relay.user: is missing, and the relay is started as root",
            'set user = "relay" (useradd --system relay),'
            ' or user = "root" to run the workers as root on purpose',
        )
    try:
        entry = pwd.getpwnam(settings.user) if settings.user else None
    except KeyError:
        raise StartupError(
            f'relay.user: this system has no user "{settings.user}"',
            f"create it (useradd --system {settings.user}), or name another user",
        ) from None
    try:
        group = grp.getgrnam(settings.group) if settings.group else None
    except KeyError:
        raise StartupError(
            f'relay.group: this system has no group "{settings.group}"',
            f"create it (groupadd --system {settings.group}), or leave group out",
        ) from None
    _check_admin_user(settings, own_uid)
    if own_uid != 0:
        return _own_identity(settings, entry, group)
    assert entry is not None  # noqa: S101  root without a user was refused above
    uid = entry.pw_uid
    gid = group.gr_gid if group else entry.pw_gid
    found = Identity(
        entry.pw_name,
        uid,
        gid,
        tuple(os.getgrouplist(entry.pw_name, gid)),
        change=uid != 0 or gid != os.getegid(),
    )
    _try(found)
    return found


def _try(identity: Identity) -> None:
    """Raise StartupError if root cannot become this user, as in many containers."""
    try:
        with acting_as(identity):
            pass
    except OSError as error:
        name = identity.user
        raise StartupError(
            f'relay.user: root cannot become "{name}" here: {error.strerror or error}',
            "start the relay as that user (--user, runAsUser) and leave user out, or give it"
            " CAP_SETUID and CAP_SETGID",
        ) from None


def _own_identity(
    settings: Relay, entry: pwd.struct_passwd | None, group: grp.struct_group | None
) -> Identity:
    """The user of this process, which is not root, or StartupError."""
    own_uid = os.geteuid()
    if entry is not None and entry.pw_uid != own_uid:
        raise StartupError(
            f'relay.user: "{settings.user}" is not the user that starts the relay,'
            f" which has user id {own_uid}",
            "start it as root or as that user, or leave user out",
        )
    if group is not None and group.gr_gid not in {os.getegid(), *os.getgroups()}:
        raise StartupError(
            f'relay.group: the user that starts the relay is not in "{settings.group}"',
            "start it as root, or leave group out",
        )
    name = entry.pw_name if entry else ""
    return Identity(name, own_uid, os.getegid(), tuple(os.getgroups()), change=False)


def _check_admin_user(settings: Relay, own_uid: int) -> None:
    if not settings.admin_user:
        return
    try:
        uid = pwd.getpwnam(settings.admin_user).pw_uid
    except KeyError:
        raise StartupError(
            f'relay.admin_user: this system has no user "{settings.admin_user}"',
            f"create it (useradd --system {settings.admin_user}), or leave admin_user out",
        ) from None
    if own_uid not in {0, uid}:
        raise StartupError(
            f'relay.admin_user: "{settings.admin_user}" is not the user that starts the relay',
            "start it as root, or leave admin_user out",
        )


def find_admin_identity(settings: Relay, workers: Identity) -> Identity:
    """The admin process's user: one of its own after a start as root, if possible.

    It is the workers' user if no other user can run this Python.
    """
    if os.geteuid() != 0:
        return workers
    names = (settings.admin_user,) if settings.admin_user else ADMIN_USERS
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        found = Identity(
            name, entry.pw_uid, entry.pw_gid, (entry.pw_gid,), change=entry.pw_uid != 0
        )
        if settings.admin_user or (entry.pw_uid not in {0, workers.uid} and can_run_python(found)):
            return found
    log.warning(
        "the admin process has the workers' user, as none of %s can run %s and read its libraries;"
        " make them readable for all users, or name a user that can in relay.admin_user",
        ", ".join(ADMIN_USERS),
        sys.executable,
    )
    return workers


def can_run_python(identity: Identity) -> bool:
    """Whether this user can run Python and read what the admin process imports."""
    files = [os.__file__, __file__]
    for name in ("uvicorn", "httptools", "jinja2"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            files.append(spec.origin)
    with acting_as(identity):
        return os.access(sys.executable, os.X_OK, effective_ids=True) and all(
            os.access(file, os.R_OK, effective_ids=True) for file in files
        )


@contextmanager
def acting_as(identity: Identity) -> Iterator[None]:
    """Have the rights of another user for a moment, to check what that user may do."""
    if not identity.change:
        yield
        return
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups(identity.groups)
    os.setegid(identity.gid)
    os.seteuid(identity.uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)
        hide_memory()


def become(identity: Identity) -> None:
    """Become this user for good, and give up every right that could undo it.

    Raises OSError; then the process must end.
    """
    if identity.change:
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        if (
            os.getresuid() != (identity.uid,) * 3
            or os.getresgid() != (identity.gid,) * 3
            or set(os.getgroups()) != set(identity.groups)
        ):
            raise PermissionError(f"the kernel did not make this process user {identity.user}")
    if identity.uid != 0:
        _drop_capabilities()
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    hide_memory()


def _drop_capabilities() -> None:
    # The systemd unit gives CAP_NET_BIND_SERVICE as an ambient capability, which
    # children inherit. Only the supervisor needs it.
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def name_process(name: str) -> None:
    """Set the name that `ps -o comm` and `top` show, at most 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends, and at once if it has ended already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)

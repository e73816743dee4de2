"""What each process may not do, beyond the permissions of its user.

By default, processes of one user may read each other's memory. The supervisor, the
workers and the checker hold private keys, so they forbid it: only root may trace them
or read /proc/PID/mem, and no core file is written when one of them crashes.

An attacker who controls a process has its rights. So each process gives up what it does
not need, with Landlock where the kernel has it:

    worker     writes only where the access log is; executes nothing
    checker    reads what Python and name resolution need; writes only its own directory
    admin      reads what Python needs and what the checker found; connects to nothing

None of them can signal a process outside, connect to an abstract unix socket, or trace
another process, even as root. With seccomp they can also not set limits or priorities
of another process: the checker and the admin process always, workers if they share the
supervisor's user.

Never: weakens an earlier restriction; ends a process because the kernel lacks a
feature.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from relay.sandbox import landlock, seccomp
from relay.sandbox.landlock import ALL, CHANGE, READ, Files, Rule

_PR_SET_DUMPABLE = 4

# Libraries may load other libraries from here later, and time zones are here. No
# secrets are.
_SYSTEM = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
    "/usr/share/zoneinfo",
    "/etc/localtime",
)
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")
# For getaddrinfo, with the modules that nsswitch.conf may name: files, dns, resolve,
# nis, sss, libvirt, mymachines.
RESOLVER_FILES = tuple(
    Path("/etc") / name
    for name in (
        "resolv.conf",
        "hosts",
        "nsswitch.conf",
        "gai.conf",
        "host.conf",
        "services",
        "protocols",
        "networks",
        "yp.conf",
        "defaultdomain",
    )
)
_RESOLVER_DIRECTORIES = (
    "/run/systemd/resolve",
    "/run/systemd/machines",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/run/nscd",
    "/var/cache/nscd",
    "/var/lib/sss",
    "/var/yp",
    "/var/lib/libvirt/dnsmasq",
    "/etc/resolver",
)
_APPEND = Files.WRITE_FILE | Files.MAKE_REG | Files.MAKE_FIFO | Files.TRUNCATE
_OWN_DIRECTORY = READ | Files.WRITE_FILE | Files.MAKE_REG | Files.REMOVE_FILE | Files.TRUNCATE

_libc = ctypes.CDLL(None, use_errno=True)

log = logging.getLogger(__name__)


def hide_memory() -> None:
    """Forbid other processes of this user to read this memory, and forbid core files.

    Children inherit it. The kernel resets it at exec and, depending on
    fs.suid_dumpable, at a change of user, so call it again after both. Raises OSError.
    """
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"PR_SET_DUMPABLE: {os.strerror(error)}")
    # If the core pattern is a pipe, this limit has no effect; PR_SET_DUMPABLE has.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def confine_worker(access_log: str) -> None:
    """For a worker that has opened all it needs, except its access log.

    It can start no process and no thread after this.
    """
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    # The filter costs 1 % of a small request, so it is used only where it is needed.
    if _shares_user_with(os.getppid()):
        _keep_to_self("worker")
    _restrict(
        "worker", CHANGE | Files.EXECUTE, [Rule(path, _APPEND) for path in log_paths(access_log)]
    )


def confine_checker(directory_fd: int) -> None:
    """For the checker, before it starts threads: running threads are not restricted."""
    rules = [
        Rule(directory_fd, _OWN_DIRECTORY),
        *_readable(python_paths()),
        *_readable(resolver_paths()),
    ]
    _keep_to_self("checker")
    _restrict("checker", ALL, [*rules, Rule(Path("/dev/null"), Files.READ_FILE | Files.WRITE_FILE)])


def confine_admin(health_fd: int) -> None:
    """For the admin process, after its sockets are open.

    `health_fd` is the directory of the checker, -1 for none.
    """
    rules = list(_readable(python_paths()))
    if health_fd >= 0:
        rules.append(Rule(health_fd, READ))
    _keep_to_self("admin process")
    _restrict("admin process", ALL, rules, ports=True)


def describe(access_log: str) -> str:
    """One line for the log: which restrictions are in force on this machine."""
    known = landlock.version()
    has_seccomp = seccomp.is_available()
    if not known:
        text = (
            "Landlock is not in force: this kernel lacks it (it needs Linux 5.13, with landlock"
            " in the lsm= list), or a system call filter forbids it; workers, checker and admin"
            " process may read and write everything that their user may"
        )
        if has_seccomp:
            return f"{text}; seccomp forbids them to signal other processes or to set their limits"
        return f"{text}; seccomp is not available either"
    paths = log_paths(access_log)
    written = f"only {', '.join(map(str, paths))}" if paths else "no file"
    text = (
        f"Landlock {known} is in force: workers execute nothing and write {written};"
        " the checker reads what Python and name resolution need, and writes its own directory;"
        " the admin process reads only what Python needs and what the checker found"
    )
    if known >= 4:
        text += ", and opens no TCP connection"
    if known >= 6 or has_seccomp:
        text += "; none of them can signal other processes"
    if has_seccomp:
        return f"{text}, or set their limits (seccomp)"
    return f"{text}; seccomp is not available, so they can set limits of their user's processes"


def log_paths(access_log: str) -> list[Path]:
    """The directories in which an access log is written.

    With strftime fields it is the directory before the first field. A link's target
    counts too.
    """
    if access_log in ("", "-"):
        return []
    path = Path(access_log)
    fixed = next(
        (ancestor for ancestor in (path, *path.parents) if "%" not in str(ancestor)), Path("/")
    )
    if fixed != path:
        return [fixed]
    found = [path.parent]
    try:
        real = path.resolve()
    except OSError:
        return found
    if real.parent != path.parent.resolve() and real.exists():
        found.append(real.parent if path.is_symlink() and not real.is_relative_to("/dev") else real)
    return found


def python_paths() -> Iterator[Path]:
    """The paths of this interpreter, its libraries and the relay package.

    Late imports, tracebacks and templates read them long after the start.
    """
    prefixes = {
        Path(prefix).resolve()
        for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)
    }
    yield Path(__file__).resolve().parents[1]
    yield from (prefix / name for prefix in prefixes for name in ("lib", "lib64"))
    yield from (
        Path(path)
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_path(name))
    )
    # Not all of sys.path: a checkout or the current directory may hold anything.
    yield from (
        entry for entry in map(Path, sys.path) if entry.name in {"site-packages", "dist-packages"}
    )
    yield from _imported_paths()
    yield from map(Path, _SYSTEM + _DEVICES)


def _imported_paths() -> Iterator[Path]:
    """The packages imported so far; they may import submodules later."""
    for name, module in list(sys.modules.items()):
        if "." not in name:
            for path in list(getattr(module, "__path__", ())) or [
                getattr(module, "__file__", None)
            ]:
                if isinstance(path, str):
                    yield Path(path)


def resolver_paths() -> Iterator[Path]:
    """What name resolution reads.

    A rule holds for the file of now. If the file is replaced, the checker must start
    again.
    """
    yield from RESOLVER_FILES
    yield from map(Path, _RESOLVER_DIRECTORIES)


def resolver_identity() -> tuple[tuple[int, int], ...]:
    """Device and inode of the files of name resolution.

    If the value changes, a confined process cannot read the new files.
    """
    found = []
    for path in RESOLVER_FILES:
        try:
            status = path.stat()
        except OSError:
            found.append((0, 0))
        else:
            found.append((status.st_dev, status.st_ino))
    return tuple(found)


def _shares_user_with(pid: int) -> bool:
    """Whether the kernel would let this process signal that one."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _keep_to_self(name: str) -> None:
    try:
        seccomp.keep_to_self()
    except OSError as error:
        log.warning(
            "the %s has no system call filter: %s; it can signal processes of its user",
            name,
            error.strerror or error,
        )


def _readable(paths: Iterable[Path]) -> Iterator[Rule]:
    return (Rule(path, READ) for path in paths)


def _restrict(name: str, forbidden: Files, allowed: Iterable[Rule], *, ports: bool = False) -> None:
    try:
        landlock.restrict(forbidden, allowed, ports=ports)
    except OSError as error:
        log.warning(
            "the %s is not confined by Landlock: %s;"
            " it may read and write everything that its user may",
            name,
            error.strerror or error,
        )

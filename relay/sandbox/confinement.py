"""What our processes are kept from, beyond what their user may not do.

Every process of one user may read the memory of another one, unless that one says no.
The supervisor, the workers and the checker have private keys in memory, so they say no:
only root may trace them or read /proc/PID/mem, and no core file is written when one of
them crashes or is aborted.

A process that is taken over can do what it may, so each gives up by Landlock what it does
not need, where the kernel has it:

    worker     writes where the access log is, and executes nothing
    checker    reads what Python and name resolution need, writes its own directory
    admin      reads what Python needs and what the checker found, connects to nothing

None of them signals a process outside, connects to an abstract unix socket, or traces
another one, even as root. Those that share the supervisor's user also give up by seccomp to
set limits or priorities of another process; the checker and the admin process always do.

Never: weakens what was forbidden before; ends a process because the kernel does not take part.
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

# What an opened library may load later, and what clocks and names need. No secrets are kept there.
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
# getaddrinfo, with the modules that nsswitch.conf may name: files, dns, resolve, nis, sss, libvirt, mymachines.
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
    """Keep other processes of our user out of our memory, and our memory out of core files.

    Children inherit it. The kernel takes it back at exec and, where fs.suid_dumpable is
    set, at a change of user, so it is said again after both. Raises OSError.
    """
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"PR_SET_DUMPABLE: {os.strerror(error)}")
    # A core pattern that is a pipe does not care about this limit, but about the above.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def confine_worker(access_log: str) -> None:
    """For a worker that has opened what it needs but its access log. It starts no process and no thread any more, either."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    # The filter costs 1 % of a small request, so only where it keeps us from something.
    if _shares_user_with(os.getppid()):
        _keep_to_self("worker")
    _restrict(
        "worker", CHANGE | Files.EXECUTE, [Rule(place, _APPEND) for place in log_places(access_log)]
    )


def confine_checker(directory_fd: int) -> None:
    """For the checker, before it has threads: a thread that runs already would stay free."""
    rules = [
        Rule(directory_fd, _OWN_DIRECTORY),
        *_readable(python_places()),
        *_readable(resolver_places()),
    ]
    _keep_to_self("checker")
    _restrict("checker", ALL, [*rules, Rule(Path("/dev/null"), Files.READ_FILE | Files.WRITE_FILE)])


def confine_admin(health_fd: int) -> None:
    """For the admin process; its sockets are open already. `health_fd` is the checker's directory, -1 for none."""
    rules = list(_readable(python_places()))
    if health_fd >= 0:
        rules.append(Rule(health_fd, READ))
    _keep_to_self("admin process")
    _restrict("admin process", ALL, rules, ports=True)


def describe(access_log: str) -> str:
    """For the log: what is in force on this machine."""
    known = landlock.version()
    alone = seccomp.is_available()
    if not known:
        return (
            "Landlock is not in force: this kernel does not have it (Linux 5.13, in the list lsm=), or a system call filter "
            "forbids it; workers, checker and admin process may read and write whatever their user may"
            + (
                "; by seccomp none of them sends a signal to others, or sets limits of others"
                if alone
                else ""
            )
        )
    places = log_places(access_log)
    written = f"only {', '.join(map(str, places))}" if places else "no file"
    return (
        f"Landlock {known} is in force: workers execute nothing and write {written}; the checker reads what Python and name "
        "resolution need and writes its own directory; the admin process reads only what Python needs and what the checker found"
        + (", and has no use of the network but to answer" if known >= 4 else "")
        + ("; none of them sends a signal to others" if known >= 6 or alone else "")
        + (", or sets limits of others (seccomp)" if alone else "")
    )


def log_places(access_log: str) -> list[Path]:
    """Where an access log is written: its directory, the part before the first strftime field, and where links lead."""
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


def python_places() -> Iterator[Path]:
    """Where this interpreter, its libraries and our own package are read from, also long after the start.

    Late imports, tracebacks and templates read there.
    """
    prefixes = {
        Path(prefix).resolve()
        for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)
    }
    yield Path(__file__).resolve().parents[1]
    yield from (prefix / name for prefix in prefixes for name in ("lib", "lib64"))
    yield from (
        Path(place)
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (place := sysconfig.get_path(name))
    )
    # A checkout or the current directory may hold anything: of those only our package is Python's.
    yield from (
        entry for entry in map(Path, sys.path) if entry.name in {"site-packages", "dist-packages"}
    )
    yield from _imported_places()
    yield from map(Path, _SYSTEM + _DEVICES)


def _imported_places() -> Iterator[Path]:
    """The packages that are imported, wherever they are: they may import more of themselves."""
    for name, module in list(sys.modules.items()):
        if "." not in name:
            for place in list(getattr(module, "__path__", ())) or [
                getattr(module, "__file__", None)
            ]:
                if isinstance(place, str):
                    yield Path(place)


def resolver_places() -> Iterator[Path]:
    """What name resolution reads. A file is allowed as the one it is now: when another takes its name, the checker must start anew."""
    yield from RESOLVER_FILES
    yield from map(Path, _RESOLVER_DIRECTORIES)


def resolver_identity() -> tuple[tuple[int, int], ...]:
    """Which files name resolution reads now: another value means that a confined process does not see the new ones."""
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
    """Whether the kernel takes us for the user of that process."""
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
            "the %s has no system call filter: %s; it may send signals to processes of its user",
            name,
            error.strerror or error,
        )


def _readable(places: Iterable[Path]) -> Iterator[Rule]:
    return (Rule(place, READ) for place in places)


def _restrict(name: str, forbidden: Files, allowed: Iterable[Rule], *, ports: bool = False) -> None:
    try:
        landlock.restrict(forbidden, allowed, ports=ports)
    except OSError as error:
        log.warning(
            "the %s is not confined by Landlock: %s; it may read and write whatever its user may",
            name,
            error.strerror or error,
        )

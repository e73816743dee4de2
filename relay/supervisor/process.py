"""Starts, reaps and signals processes.

Workers, the checker, the preparer and the watcher are forked; the admin process is
forked and executed.

Never: decides when (`relay.core.fleet_plan.plan` does).
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import relay
from relay.errors import StartupError
from relay.logs import messages
from relay.memory_shortage import HINT, describe_shortage, is_too_little_memory
from relay.supervisor.privileges import Identity, become, end_with_parent, name_process
from relay.supervisor.signals import fork_with_signals_held
from relay.tls.certificates.provider_keys import load_from_now_on
from relay.tls.devices import reopen_devices

EXIT_BUG = 70
EXIT_CANNOT_START = 71
EXIT_CONFIG = 78
_ORPHANS_A_TURN = 100

_own_children: set[int] = set()  # forked here and not reaped yet

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: its wait status, and the CPU time it used."""

    status: int
    cpu_us: int

    def __str__(self) -> str:
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            try:
                return f"was ended by {signal.Signals(number).name}"
            except ValueError:
                return f"was ended by signal {number}"
        return f"ended with exit code {os.waitstatus_to_exitcode(self.status)}"


def start_worker(
    slot: int,
    identity: Identity,
    close_in_child: Callable[[], None],
    work: Callable[[], int | None],
) -> int:
    """Fork a worker; returns its pid. Raises OSError if the kernel does not fork.

    The child calls `close_in_child`, which closes the files of other processes. Then it
    takes on the identity, runs `work`, and ends with the result as its exit code.
    """
    return _fork(f"worker {slot}", f"worker[{slot}]", identity, close_in_child, work)


def start_checker(
    identity: Identity, close_in_child: Callable[[], None], work: Callable[[], int | None]
) -> int:
    """Fork the checker, as `start_worker` does."""
    return _fork("checker", "checker", identity, close_in_child, work)


def start_preparer(close_in_child: Callable[[], None], work: Callable[[], int | None]) -> int:
    """Fork the process that inspects a configuration. Raises OSError.

    It keeps the supervisor's rights, to read files that only the supervisor may read.
    It ends when the supervisor ends.
    """
    return _fork("preparer", "preparer", None, close_in_child, _under_parent(work))


def start_watcher(close_in_child: Callable[[], None], work: Callable[[], None]) -> int:
    """Fork the process that looks at files, with the same rights. Raises OSError."""
    return _fork("watcher", "watcher", None, close_in_child, _under_parent(work))


def _under_parent(work: Callable[[], int | None]) -> Callable[[], int | None]:
    """The work of a child that ends when the supervisor ends."""
    parent = os.getpid()

    def work_under_parent() -> int | None:
        end_with_parent(parent)
        return work()

    return work_under_parent


def _fork(
    name: str,
    log_name: str,
    identity: Identity | None,
    close_in_child: Callable[[], None],
    work: Callable[[], int | None],
) -> int:
    pid = _fork_child()
    if pid == 0:
        _run_child(name, log_name, identity, close_in_child, work)
    return pid


def _run_child(
    name: str,
    log_name: str,
    identity: Identity | None,
    close_in_child: Callable[[], None],
    work: Callable[[], int | None],
) -> NoReturn:
    code = EXIT_BUG
    try:
        close_in_child()
        name_process(f"relay {name}")
        messages.name_process(log_name)
        load_from_now_on()
        reopen_devices()
        if identity is not None:
            become(identity)
        # At SIGABRT, a process that hangs prints its traceback.
        faulthandler.enable(all_threads=False)
        code = work() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_BUG
    except StartupError as error:
        code = EXIT_CANNOT_START
        log.critical("%s ends: %s; %s", name, error.what, error.hint)
    except BaseException as error:
        if is_too_little_memory(error):
            code = EXIT_CANNOT_START
            log.critical("%s ends: %s; %s", name, describe_shortage(error), HINT)
        else:
            log.critical("bug: %s raised and ends; please report this", name, exc_info=True)
    finally:
        # Without a shutdown of the interpreter: that would run the supervisor's exit
        # handlers.
        messages.last_flush()
        os._exit(code)


def start_admin(identity: Identity, descriptors: Mapping[str, int]) -> int:
    """Start the admin process; returns its pid. Raises OSError.

    It is a new interpreter, so no private key is in its memory. `descriptors` maps its
    options to the open files that it gets.
    """
    # -P: a package named relay in the current directory must not be imported.
    # PYTHONPATH has the directory of this package.
    arguments = [sys.executable, "-P", "-m", "relay.admin.main"]
    for option, descriptor in descriptors.items():
        arguments += [option, str(descriptor)]
    package_root = str(Path(relay.__file__).resolve().parents[1])
    # With it, Python's own OpenSSL would open the device that holds the private keys.
    inherited = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
    environment = {
        **inherited,
        "PYTHONPATH": os.pathsep.join(
            filter(None, (package_root, os.environ.get("PYTHONPATH", "")))
        ),
    }

    pid = _fork_child()
    if pid == 0:
        try:
            become(identity)
            _hand_over(descriptors.values())
            os.execve(sys.executable, arguments, environment)  # noqa: S606  no shell is wanted
        except OSError as error:
            # The usual cause is a virtual environment below /root.
            log.critical(
                "the admin process cannot be started as user %s: %s; install the relay where"
                ' that user can read it, or set admin.listen = ""',
                identity.user or identity.uid,
                error,
            )
        except BaseException:
            log.critical("the admin process cannot be started", exc_info=True)
        finally:
            os._exit(EXIT_CANNOT_START)
    return pid


def own_command() -> list[str]:
    """The command that started this process, for the program that is installed now.

    A script is executed as such: its first line may name another Python today.
    """
    script = sys.orig_argv[1] if len(sys.orig_argv) > 1 else ""
    if script == sys.argv[0] and os.access(script, os.X_OK):
        return [str(Path(script).absolute()), *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


def start_program(
    command: list[str], environment: Mapping[str, str], output_fd: int, kept: Collection[int]
) -> int:
    """Start another program as this user; returns its pid. Raises OSError.

    It writes to `output_fd`, has the descriptors `kept`, and ends with this process.
    """
    parent = os.getpid()
    pid = _fork_child()
    if pid == 0:
        try:
            end_with_parent(parent)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output_fd, 1)
            os.dup2(output_fd, 2)
            _hand_over(kept)
            os.execve(command[0], command, environment)  # noqa: S606  no shell is wanted
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror or error}\n".encode())
        finally:
            os._exit(EXIT_CANNOT_START)
    return pid


def _hand_over(descriptors: Collection[int]) -> None:
    """Let the next program inherit these descriptors and 0 to 2, and no others.

    A library, such as a provider of OpenSSL, may have opened some for all programs.
    """
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    with contextlib.suppress(OSError):  # without /proc
        for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 (names are enough)
            if descriptor > 2 and descriptor not in descriptors:
                with contextlib.suppress(OSError):  # the descriptor of this listing
                    os.set_inheritable(descriptor, False)


def _fork_child() -> int:
    pid = fork_with_signals_held(os.fork)
    if pid:
        _own_children.add(pid)
    else:
        _own_children.clear()
    return pid


def take_child(pid: int) -> None:
    """A child that the version before an upgrade has started in this process."""
    _own_children.add(pid)


def reap(pid: int) -> ExitStatus | None:
    """How a child ended; None while it runs. The kernel gives this only once."""
    try:
        done, status, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        _own_children.discard(pid)
        return ExitStatus(0, 0)
    if done:
        _own_children.discard(pid)
    return ExitStatus(status, int((usage.ru_utime + usage.ru_stime) * 1e6)) if done else None


def reap_orphans() -> None:
    """Reap adopted processes, which were not started here.

    The first process of a container adopts every orphan. Children that were started
    here are reaped by the code that started them.
    """
    for _ in range(_ORPHANS_A_TURN):
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in _own_children:
            return
        os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)


def send(pid: int, number: signal.Signals) -> None:
    """Signal a child that was not reaped yet, so that the pid is still its own."""
    os.kill(pid, number)


def raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit.

    The supervisor opens one socket per address and slot.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

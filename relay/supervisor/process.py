"""Starting and ending processes: fork for workers, fork and exec for the admin process.

Never: decides when (that is `core.fleet_plan.plan`).
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import relay
from relay.logs import messages
from relay.memory_shortage import HINT, describe_shortage, is_too_little_memory
from relay.supervisor.privileges import Identity, become, end_with_parent, name_process
from relay.supervisor.signals import fork_with_signals_held

EXIT_BUG = 70
EXIT_CANNOT_START = 71
EXIT_CONFIG = 78
_STRANGERS_A_TURN = 100

_ours: set[int] = set()  # forked here and not reaped yet

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: its wait status and what it used."""

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
    slot: int, identity: Identity, let_go: Callable[[], None], work: Callable[[], int | None]
) -> int:
    """Fork a process that closes what is not its own (`let_go`), takes on the identity,
    runs `work`, and ends with its result. Returns the pid.

    Raises OSError when the kernel does not fork.
    """
    return _fork(f"worker {slot}", f"worker[{slot}]", identity, let_go, work)


def start_checker(
    identity: Identity, let_go: Callable[[], None], work: Callable[[], int | None]
) -> int:
    """Fork the checker; as `start_worker`."""
    return _fork("checker", "checker", identity, let_go, work)


def start_preparer(let_go: Callable[[], None], work: Callable[[], int | None]) -> int:
    """Fork a process with our rights, for it reads what only we may read. It does not outlive us. Raises OSError."""
    parent = os.getpid()

    def work_while_we_live() -> int | None:
        end_with_parent(parent)
        return work()

    return _fork("preparer", "preparer", None, let_go, work_while_we_live)


def _fork(
    name: str,
    in_messages: str,
    identity: Identity | None,
    let_go: Callable[[], None],
    work: Callable[[], int | None],
) -> int:
    pid = _fork_ours()
    if pid == 0:
        _run_child(name, in_messages, identity, let_go, work)
    return pid


def _run_child(
    name: str,
    in_messages: str,
    identity: Identity | None,
    let_go: Callable[[], None],
    work: Callable[[], int | None],
) -> NoReturn:
    code = EXIT_BUG
    try:
        let_go()
        name_process(f"relay {name}")
        messages.name_process(in_messages)
        if identity is not None:
            become(identity)
        # SIGABRT is how the supervisor asks a worker that hangs where it does.
        faulthandler.enable(all_threads=False)
        code = work() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_BUG
    except BaseException as error:
        if is_too_little_memory(error):
            code = EXIT_CANNOT_START
            log.critical("%s ends: %s; %s", name, describe_shortage(error), HINT)
        else:
            log.critical("%s ends with a bug", name, exc_info=True)
    finally:
        # No interpreter shutdown: what is left belongs to the supervisor, and its exit
        # handlers are not ours to run.
        messages.last_flush()
        os._exit(code)


def start_admin(identity: Identity, descriptors: Mapping[str, int]) -> int:
    """Start the admin process: a fresh interpreter, so that no key is in its memory.
    Returns the pid. Raises OSError.

    `descriptors` are what it gets from us, by its options.
    """
    # -P: the current directory must not be able to slip in a package named relay; ours
    # is found where this one was.
    arguments = [sys.executable, "-P", "-m", "relay.admin.main"]
    for option, descriptor in descriptors.items():
        arguments += [option, str(descriptor)]
    package_root = str(Path(relay.__file__).resolve().parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, (package_root, os.environ.get("PYTHONPATH", "")))
        ),
    }

    pid = _fork_ours()
    if pid == 0:
        try:
            become(identity)
            for descriptor in descriptors.values():
                os.set_inheritable(descriptor, True)
            os.execve(sys.executable, arguments, environment)  # noqa: S606  no shell is wanted
        except OSError as error:
            # A virtual environment below /root is the usual cause: no traceback says
            # that.
            log.critical(
                'the admin process cannot be started as user %s: %s; install the relay where that user can read it, or set admin.listen = ""',
                identity.user or identity.uid,
                error,
            )
        except BaseException:
            log.critical("the admin process cannot be started", exc_info=True)
        finally:
            os._exit(EXIT_CANNOT_START)
    return pid


def _fork_ours() -> int:
    pid = fork_with_signals_held(os.fork)
    if pid:
        _ours.add(pid)
    else:
        _ours.clear()
    return pid


def reap(pid: int) -> ExitStatus | None:
    """How the process ended, None while it lives. Each process can be asked about once after its end."""
    try:
        done, status, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        _ours.discard(pid)
        return ExitStatus(0, 0)
    if done:
        _ours.discard(pid)
    return ExitStatus(status, int((usage.ru_utime + usage.ru_stime) * 1e6)) if done else None


def reap_strangers() -> None:
    """Reap what others have left us: as the first process of a container we adopt every
    orphan.

    One of our own that has just ended is left to who started it.
    """
    for _ in range(_STRANGERS_A_TURN):
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in _ours:
            return
        os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)


def send(pid: int, number: signal.Signals) -> None:
    """Signal a child that was not reaped yet, so the pid is surely still its own."""
    os.kill(pid, number)


def raise_file_limit() -> None:
    """Raise our limit of open files as far as it goes: a socket per address and slot."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""At SIGALRM, a process tries what it may do, and says what worked.

Every Python that has this directory in PYTHONPATH imports this file. PRYING_ATTEMPTS
holds the attempts as JSON, `[kind, argument]` each. What worked goes to stderr, as one
line.
"""

import contextlib
import json
import os
import pathlib
import resource
import signal
import socket


def _executes(path):
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            os.execv(path, [path])
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _reads(path):
    os.read(os.open(path, os.O_RDONLY), 1)
    return True


def _writes(path):
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    return True


def _removes(path):
    pathlib.Path(path).unlink()
    return True


def _lists(path):
    return bool(list(pathlib.Path(path).iterdir()))


def _signals(pid):
    os.kill(int(pid), 0)
    return True


def _limits(pid):
    """Sets a limit of that process, as it is; 0 is the supervisor."""
    pid = int(pid) or os.getppid()
    resource.prlimit(pid, resource.RLIMIT_CPU, resource.getrlimit(resource.RLIMIT_CPU))
    return True


def _slows(_argument):
    os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0))
    return True


def _signals_supervisor(_argument):
    os.kill(os.getppid(), 0)
    return True


def _connects(port):
    with socket.create_connection(("127.0.0.1", int(port)), timeout=5):
        return True


def _binds(_argument):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return True


def _resolves(host):
    return bool(socket.getaddrinfo(host, None))


def _imports(name):
    __import__(name)
    return True


_KINDS = {
    "execute": _executes,
    "read": _reads,
    "write": _writes,
    "remove": _removes,
    "list": _lists,
    "signal": _signals,
    "signal supervisor": _signals_supervisor,
    "limit": _limits,
    "slow": _slows,
    "connect": _connects,
    "bind": _binds,
    "resolve": _resolves,
    "import": _imports,
}


def _pry(_number, _frame):
    worked = []
    for kind, argument in json.loads(os.environ["PRYING_ATTEMPTS"]):
        try:
            if _KINDS[kind](argument):
                worked.append([kind, argument])
        except (OSError, ImportError):
            continue
    os.write(2, f"PRYING {json.dumps({'pid': os.getpid(), 'worked': worked})}\n".encode())


if "PRYING_ATTEMPTS" in os.environ:
    signal.signal(signal.SIGALRM, _pry)

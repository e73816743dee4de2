"""Forks relays from a process that has imported the relay already.

    python -m tests.support.warm_server FD

`tests.support.warm.Starter` is the other end of FD, a socket for messages. A request is
(module, arguments, cwd, environment), with stdin, stdout and stderr as descriptors; the
answer is the pid, with the descriptor on which the exit code will come. The child runs
the module as `python -m MODULE ARGUMENTS` does.

Never: has threads, or runs any code of the relay before the fork but imports.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import runpy
import select
import signal
import socket
import sys


def serve(sock: socket.socket) -> str:
    """Fork on requests, and report ends, until the tests end.

    Returns in each child, with the module to run.
    """
    ended = {}
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([sock, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            report(ended)
        if sock not in ready:
            continue
        request, fds, _, _ = socket.recv_fds(sock, 1 << 20, 3)
        if not request:
            for pid in ended:
                os.kill(pid, signal.SIGKILL)
            sys.exit()
        told, tell = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            module = become(pickle.loads(request), *fds)
            for fd in (sock.detach(), woken, wake, told, tell, *fds, *ended.values()):
                os.close(fd)
            return module
        socket.send_fds(sock, [str(pid).encode()], [told])
        for fd in (told, *fds):
            os.close(fd)
        ended[pid] = tell


def report(ended: dict[int, int]) -> None:
    """Write the exit code of each child that has ended; negative is a signal."""
    for pid in list(ended):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            fd = ended.pop(pid)
            os.write(fd, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(fd)


def become(request: tuple[str, list[str], str, dict[str, str]], *streams: int) -> str:
    """Be as a process that the shell has started. Returns the module."""
    module, arguments, cwd, environment = request
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    sys.argv[1:] = arguments
    sys.orig_argv[1:] = ["-m", module, *arguments]
    return module


if __name__ == "__main__":
    from relay.tls.preload import load_openssl

    load_openssl()
    for name in ("relay.cli.main", "relay.config.load", "relay.supervisor.main"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a relay collects when it starts, and would copy what it looks at
    runpy.run_module(
        serve(socket.socket(fileno=int(sys.argv[1]))), run_name="__main__", alter_sys=True
    )

"""The relay on a machine whose DNS server accepts every question and answers none.

`Gateway(body, module=SILENT)` runs it in a network namespace of its own, where a UDP
socket that is not read has the server's address. Its control socket can be reached from
outside, its listeners cannot. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

SILENT = ("tests.support.silent_dns",)
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000


def possible() -> bool:
    """Whether this process may make such a network."""
    if os.geteuid() != 0:
        return False
    pid = os.fork()
    if pid == 0:
        os._exit(0 if ctypes.CDLL(None).unshare(CLONE_NEWNS | CLONE_NEWNET) == 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def silence() -> socket.socket:
    """Move this process there."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
        raise OSError("no namespaces here")
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with tempfile.TemporaryDirectory() as directory:
        files = {
            "/etc/resolv.conf": "nameserver 127.0.0.1\n",
            "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        }
        commands = [["mount", "--make-rprivate", "/"], ["ip", "link", "set", "lo", "up"]]
        for number, (path, text) in enumerate(files.items()):
            file = Path(directory) / str(number)
            file.write_text(text)
            if Path(path).exists():
                commands.append(["mount", "--bind", str(file), str(Path(path).resolve())])
        for command in commands:
            subprocess.run(command, check=True, timeout=20)
    server.bind(("127.0.0.1", 53))
    return server


def main() -> int:
    kept = silence() if sys.argv[1] == "start" else None
    from tests.support.timed_relay import main as timed

    code = timed()
    if kept is not None:
        kept.close()
    return code


if __name__ == "__main__":
    sys.exit(main())

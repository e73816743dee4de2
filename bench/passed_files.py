"""Starts a program with descriptors as systemd passes them (sd_listen_fds(3)).

Never: opens a descriptor.
"""

from __future__ import annotations

# Moves the descriptors in its arguments to 3, 4, …, and executes the rest.
PASS = """
import os, sys
fds = [int(each) for each in sys.argv[1].split(",") if each]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number, inheritable=True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(fds))
os.environ["LISTEN_FDNAMES"] = sys.argv[2]
os.execv(sys.argv[3], sys.argv[3:])
"""

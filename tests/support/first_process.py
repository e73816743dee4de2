"""Makes a container around itself, and becomes the program in it, as process 1.

Called by unshare with one JSON argument, see `tests.support.containerfile.in_root`. It
needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_SET_SECCOMP, _MODE_FILTER = 38, 24, 22, 2
_LAST_CAPABILITY = 40
_USERS = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
_libc = ctypes.CDLL(None, use_errno=True)


def mount(*arguments: str | Path) -> None:
    """Raises CalledProcessError."""
    subprocess.run(["mount", *map(str, arguments)], check=True, timeout=20)


def enter(wanted: dict) -> None:
    """Mount what a container has, and make the root read-only."""
    root = Path(wanted["root"])
    mount("--bind", root, root)
    for name in ("usr", "etc", "proc", "dev", "tmp", "run"):
        (root / name).mkdir(exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink() and not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("usr", "etc"):
        mount("--rbind", f"/{name}", root / name)
        mount("-o", "remount,bind,ro", root / name)
    mount("-t", "proc", "proc", root / "proc")
    mount("-t", "tmpfs", "-o", "mode=755", "dev", root / "dev")
    for name in ("null", "zero", "urandom", "random"):
        (root / "dev" / name).touch()
        mount("--bind", f"/dev/{name}", root / "dev" / name)
    for inside, outside in wanted["volumes"].items():
        at = root / inside.lstrip("/")
        if inside.startswith("/etc/"):  # /etc is that of this machine
            mount("-t", "tmpfs", "-o", "mode=755", "etc", root / "etc")
            (root / "etc" / "passwd").write_text(_USERS)
        at.mkdir(parents=True, exist_ok=True)
        kind, _, options = outside.partition(":")
        if kind == "tmpfs":
            mount("-t", "tmpfs", "-o", options, "volume", at)
        else:
            mount("--bind", outside, at)
    if wanted["read_only"]:
        mount("-o", "remount,bind,ro", root)
        # No shell: what needs one fails.
        for shell in ("dash", "bash", "sh"):
            if (path := root / "usr" / "bin" / shell).is_file() and not path.is_symlink():
                mount("--bind", "/dev/null", path)
    os.chroot(root)
    os.chdir(wanted["directory"])


def give_up_rights(user: str) -> None:
    """Become the user, without capabilities and new privileges, as engines do."""
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    uid, gid = map(int, user.split(":"))
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")


def forbid(calls: dict[str, int]) -> None:
    """A filter like that of an engine: these system calls fail with their errors."""
    if not calls:
        return
    code = [(0x20, 0, 0, 0)]  # load the number of the call
    for number, error in calls.items():
        code += [(0x15, 0, 1, int(number)), (0x06, 0, 0, 0x00050000 | error)]
    code.append((0x06, 0, 0, 0x7FFF0000))
    packed = b"".join(struct.pack("=HBBI", *step) for step in code)
    keep = ctypes.create_string_buffer(packed)
    program = struct.pack("@HP", len(code), ctypes.addressof(keep))
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")


def main() -> None:
    """Become the program. Standard output and error stay."""
    wanted = json.loads(sys.argv[1])
    enter(wanted)
    if wanted["read_only"]:  # a step of the build keeps its rights
        give_up_rights(wanted["user"])
    forbid(wanted["forbidden"])
    os.execvpe(wanted["command"][0], wanted["command"], wanted["environment"])


main()

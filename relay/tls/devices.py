"""The devices that OpenSSL's providers have open, such as /dev/tpmrm0.

A provider may open its device when OpenSSL is loaded, before the workers are forked. A
forked process must not share it: the commands of two processes could mix, and the
kernel keeps the objects of a TPM for each open file. So a forked process opens the
device again, under the same descriptor.

Providers are used only with an OPENSSL_CONF of the operator. Without it nothing is
searched.

Never: opens a device that was not open before.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_DESCRIPTORS = "/proc/self/fd"
# Linux: memory (null, zero, random), terminals, and the ends of pseudo terminals.
_USUAL_MAJORS = frozenset((1, 4, 5, *range(128, 144)))

log = logging.getLogger(__name__)


def reopen_devices() -> None:
    """In a forked process, with the supervisor's rights: open every device again."""
    for descriptor in list(_open_devices()):
        try:
            _reopen(descriptor)
        except OSError as error:
            log.warning(
                "cannot open %s for this process alone: %s; its use may fail while another"
                " process uses it; configure a device that several processes may open, such as"
                " /dev/tpmrm0",
                Path(_DESCRIPTORS, str(descriptor)).readlink(),
                error.strerror,
            )


def _open_devices() -> Iterator[int]:
    """The descriptors of character devices that are not usual ones."""
    if not os.environ.get("OPENSSL_CONF"):
        return
    try:
        descriptors = [int(name) for name in os.listdir(_DESCRIPTORS)]  # noqa: PTH208 (names)
    except OSError:  # without /proc
        return
    for descriptor in descriptors:
        try:
            status = os.fstat(descriptor)
        except OSError:  # that of the listing
            continue
        if stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) not in _USUAL_MAJORS:
            yield descriptor


def _reopen(descriptor: int) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_NONBLOCK)
    own = os.open(f"{_DESCRIPTORS}/{descriptor}", flags | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        os.dup2(own, descriptor, inheritable=False)
    finally:
        os.close(own)

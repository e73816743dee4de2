"""Tells an error caused by too little memory from a bug, and says what to do.

Never: imports anything but the standard library, so that it works when nothing else
loads.
"""

from __future__ import annotations

import errno

HINT = (
    "raise the memory limit (MemoryMax= of the unit, --memory of the container, ulimit -v), "
    "or lower relay.workers"
)
# Texts of the dynamic loader (in an ImportError), of OpenSSL, and of CPython (in a
# SystemError): some of its C code fails without making a MemoryError.
_TEXTS = (
    "failed to map segment",
    "cannot allocate",
    "malloc failure",
    "out of memory",
    "error return without exception set",
    "without setting an exception",
)


def is_too_little_memory(error: BaseException) -> bool:
    """Whether this error, or an error that caused it, means that memory was short."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return False
        if isinstance(seen, MemoryError) or getattr(seen, "errno", None) == errno.ENOMEM:
            return True
        text = str(seen).lower()
        if any(known in text for known in _TEXTS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def describe_shortage(error: BaseException) -> str:
    """What happened, as one line; HINT says what to do."""
    detail = " ".join(str(error).split("\n"))
    return "the relay has too little memory on this machine" + (f": {detail}" if detail else "")

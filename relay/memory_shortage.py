"""Tells an error that comes of too little memory from a bug, and says what to do.

Never: imports anything but the standard library, so that it is there when nothing else can be
loaded.
"""

from __future__ import annotations

import errno

HINT = (
    "raise the memory limit (MemoryMax= of the unit, --memory of the container, ulimit -v), "
    "or lower relay.workers"
)
# What the dynamic loader says in an ImportError, and OpenSSL in an error of its own.
_WORDS = ("failed to map segment", "cannot allocate", "malloc failure", "out of memory")


def is_too_little_memory(error: BaseException) -> bool:
    """Whether this error, or one that led to it, says that there was no memory."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return False
        if isinstance(seen, MemoryError) or getattr(seen, "errno", None) == errno.ENOMEM:
            return True
        text = str(seen).lower()
        if any(words in text for words in _WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def in_words(error: BaseException) -> str:
    """What happened, without what to do."""
    told = " ".join(str(error).split("\n"))
    return "this machine gives the relay too little memory" + (f": {told}" if told else "")

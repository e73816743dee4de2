"""What the check before an upgrade has read, kept for the program that takes over.

The new version reads the configuration and all its files in a child of the old one. The
result stays in memory that has no name, and this version uses it after the exec. So a
file that changes in between does no harm, and the relay uses exactly what was checked.
The memory has private keys. Only these two processes have its descriptor.

Never: leaves the descriptor to a child that serves, or to another program.
"""

from __future__ import annotations

import logging
import os
import pickle

import relay
from relay.shared.sealed_memory import read_all
from relay.supervisor.handover import State
from relay.supervisor.inspection import Inspection, PrepareRequest, inspect_to_bytes

KEY = "inspected"  # in the state: the descriptor

log = logging.getLogger(__name__)


def make_memory() -> int:
    """Memory for an inspection. Returns the descriptor; the caller closes it."""
    return os.memfd_create("relay-inspected")


def inspect_and_keep(state: State, request: PrepareRequest) -> bytes:
    """Inspect in a child, which also writes the answer into the memory of the state."""
    answer = inspect_to_bytes(request)
    if (descriptor := state.get(KEY)) is not None:
        with os.fdopen(descriptor, "wb") as memory:
            memory.write(f"{relay.__version__}\n".encode() + answer)
    return answer


def take(state: State) -> Inspection | None:
    """What this version has read before; None if it has to read everything again.

    Closes the memory.
    """
    if (descriptor := state.get(KEY)) is None:
        return None
    version, _, answer = read_all(descriptor).partition(b"\n")
    os.close(descriptor)
    if version.decode(errors="replace") != relay.__version__:
        return None
    try:
        found = pickle.loads(answer)  # noqa: S301  this program has written it
    except Exception:  # what was installed has changed again: anything may be raised
        log.warning("the files are read again, since the program has changed", exc_info=True)
        return None
    return found if isinstance(found, Inspection) else None

"""What a supervisor hands to the program that takes its place, and how.

The state is JSON in sealed memory, with the numbers of the descriptors that stay open.
An environment variable has the number of the memory and what the program is to do with
it:

    try    check whether this version can take over, and say so; change nothing
    take   take over: this process was the supervisor until now

JSON, because the other side is another version of the program. A key may be added; if
the meaning of one changes, FORMAT must change, and then this version and the one before
refuse each other.

Never: has a key or a password in the state; see `relay.supervisor.kept_inspection`.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

from relay.errors import StartupError
from relay.shared.sealed_memory import SealedFile, read_all
from relay.supervisor.signals import HANDLED

VARIABLE = "RELAY_HANDOVER"
FORMAT = 1

State = dict[str, Any]  # of JSON types; see `relay.supervisor.departure.describe`
Purpose = Literal["try", "take"]


@dataclass(frozen=True, slots=True)
class Handover:
    """A state that was handed to this process."""

    purpose: Purpose
    state: State


def write(state: State, purpose: Purpose) -> tuple[SealedFile, str]:
    """The memory with the state, and the value of VARIABLE. Raises OSError.

    The caller lets the next program inherit the descriptor, or closes the memory.
    """
    memory = SealedFile("relay-handover", json.dumps({"format": FORMAT, **state}).encode())
    return memory, f"{purpose} {memory.fd}"


def receive(environment: MutableMapping[str, str] = os.environ) -> Handover | None:
    """What was handed to this process, None for an ordinary start.

    Call it once, before anything is opened. No child of this process inherits the
    descriptors. Raises StartupError.
    """
    value = environment.pop(VARIABLE, "")
    if not value:
        return None
    purpose, _, number = value.partition(" ")
    try:
        with os.fdopen(int(number), "rb") as memory:
            state = json.loads(read_all(memory.fileno()))
        version, found = state["version"], state["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{VARIABLE}={value} names no state of a relay: {error}"
        raise StartupError(
            what, f"start without {VARIABLE}, which only relay upgrade sets"
        ) from None
    if found != FORMAT:
        raise StartupError(
            f"relay {version} hands over its state in format {found}, and this version knows"
            f" format {FORMAT}",
            "restart the relay instead of upgrading it",
        )
    if purpose == "take" and state["pid"] == os.getpid():
        for descriptor in descriptors(state):
            os.set_inheritable(descriptor, False)
        return Handover("take", state)
    return Handover("try", state)


def descriptors(state: State) -> Iterator[int]:
    """Every descriptor that the state names."""
    yield state["lock"]
    yield state["control"]
    yield from state["lifeline"]
    yield from (listener["fd"] for listener in state["listeners"])
    yield from (client["fd"] for client in state["clients"])
    yield from (worker["updates"] for worker in state["workers"] if worker["updates"] is not None)
    for board in state["boards"]:
        yield from board["segments"]
    if state["admin"] is not None:
        yield state["admin"]["fd"]
    if state.get("inspected") is not None:
        yield state["inspected"]


def hold_signals() -> set[signal.Signals]:
    """Let signals wait until the next program has handlers. Returns the mask before."""
    return {signal.Signals(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)}


def release_signals() -> None:
    """Let them come: there are handlers now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

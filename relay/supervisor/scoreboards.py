"""All generations' scoreboards, as the supervisor keeps them.

A generation has its own memory, made for its own names, so no reload can lack room. What
its workers have counted is folded into totals when they end. Names that no generation has
any more keep their totals; their cells are given back. What there is to read is a view: a
catalogue with all names, and descriptors that only serve for reading. The admin process
gets every view as a message.

Never: lets a child have the memory of another generation, or the totals; waits for a reader.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Collection
from typing import Any

from relay.errors import RelayError
from relay.shared.cell_layout import Layout, kind_of
from relay.shared.counter_totals import CounterTotals
from relay.shared.entities import (
    RELAY,
    SLOT,
    SLOT_CPU_US,
    SUPERVISOR,
    Entities,
    Series,
)
from relay.shared.scoreboard import OVER, Scoreboard, monotonic_ms
from relay.shared.sealed_memory import CELL_BYTES, SealedFile, SealedMemory
from relay.shared.snapshot import (
    HEAD_CELLS,
    MAGIC,
    PATIENCE_S,
    SEQUENCE,
    SUPERVISOR_BEAT,
    VIEW,
    CatalogueCache,
    Snapshot,
    View,
    ViewFds,
)
from relay.shared.state_cells import FIRST_CELLS, StateCells
from relay.shared.view_channel import ViewSender

_FIRST_TOTALS = 1 << 13


class Scoreboards:
    """One relay's.

    Raises OSError when the machine has no memory or descriptors left.
    """

    def __init__(self, states_cells: int = FIRST_CELLS) -> None:
        self._head = SealedMemory("relay-scoreboard", HEAD_CELLS)
        self._head.cells[0] = MAGIC
        self._totals = CounterTotals()
        self._totals.add_entities({RELAY.name: [()], SUPERVISOR.name: [()]})
        self._totals_memory = SealedMemory("relay-totals", _FIRST_TOTALS)
        self._states = StateCells(states_cells)
        self._all_states = [self._states]
        self._generations: dict[int, Scoreboard] = {}
        self._lines: dict[int, bytes] = {}
        self._facts: dict[str, Any] = {}
        self._lasting = b"{}"
        self._catalogue: SealedFile | None = None
        self._view: View | None = None
        self._known = CatalogueCache()
        self._number = 0
        self._sender = ViewSender()
        self._is_child = False

    # Generations.

    def begin(self, number: int, entities: Entities, slots: int) -> Scoreboard:
        """A scoreboard for a generation with so many workers; `publish` tells readers
        of it.
        """
        if not self._states.has_room(entities):
            before, self._states = (
                self._states,
                StateCells(2 * self._states.capacity + 64 * sum(map(len, entities.values()))),
            )
            self._all_states.append(self._states)
            bases = self._states.take(entities)
            self._states.copy_from(before)
        else:
            bases = self._states.take(entities)
        try:
            scoreboard = self._generations[number] = Scoreboard(
                number, Layout(entities, bases), self._states, slots
            )
        except BaseException:
            self._states.give_back(entities)
            raise
        self._lines[number] = json.dumps(
            {"number": number, "rows": scoreboard.rows, "entities": entities, "bases": bases}
        ).encode()
        self._totals.add_entities(entities)
        self._totals.add_entities({SLOT.name: [(str(slot),) for slot in range(slots)]})
        return scoreboard

    def lease(self, scoreboard: Scoreboard, slot: int) -> int:
        """A row for a worker, or for the checker (CHECKER_SLOT).

        There is always one. Raises OSError as `begin` does.
        """
        pieces = len(scoreboard.segments)
        row = scoreboard.lease(slot)
        if len(scoreboard.segments) != pieces:
            self.publish()
        return row

    def generation(self, number: int) -> Scoreboard:
        """Its scoreboard. Raises KeyError when it is over."""
        return self._generations[number]

    def retire(self, keep: Collection[int]) -> None:
        """A generation that is not to be kept and has no process any more gives
        everything back. One at a time, so that it takes not long.
        """
        over = next(
            (
                scoreboard
                for number, scoreboard in self._generations.items()
                if number not in keep and not scoreboard.leased
            ),
            None,
        )
        if over is None:
            return
        del self._generations[over.number], self._lines[over.number]
        over.mark(OVER)
        over.states.give_back(over.layout.entities)
        self.publish()
        for segment in over.segments:
            segment.close()
        for states in [
            each for each in self._all_states if not each.users and each is not self._states
        ]:
            self._all_states.remove(states)
            states.close()

    def states(self) -> list[StateCells]:
        """Every memory of states that a generation uses; one, but for a relay that has
        outgrown its first.
        """
        return list(self._all_states)

    # Counting.

    def fold(self, scoreboard: Scoreboard, row: int, slot: int = 0, cpu_us: int = 0) -> None:
        """Add the counters of an ended worker to the totals and free its row.

        Its gauges vanish with it.
        """
        self._totals.fold(scoreboard.row(row), scoreboard.layout)
        if cpu_us:
            self._totals.add(SLOT, (str(slot),), Series(SLOT_CPU_US), cpu_us)
        self._begin_to_write()
        self._write_totals()
        scoreboard.release(row)
        self._end_writing()

    def count(self, name: str, by: int = 1) -> None:
        """More of a counter without labels that the supervisor counts itself."""
        if self._is_child:  # its memory ends with us
            return
        self._totals.add(kind_of(name), (), Series(name), by)
        self._begin_to_write()
        self._write_totals()
        self._end_writing()

    def beat(self) -> None:
        """The supervisor's sign of life."""
        self._head.cells[SUPERVISOR_BEAT] = monotonic_ms()

    def _begin_to_write(self) -> None:
        self._head.cells[SEQUENCE] += 1

    def _end_writing(self) -> None:
        self._head.cells[SEQUENCE] += 1

    def _write_totals(self) -> None:
        self._totals_memory.cells[: self._totals.cells] = memoryview(self._totals.tobytes()).cast(
            "q"
        )

    # Readers.

    def publish(self, facts: dict[str, Any] | None = None, lasting: bytes | None = None) -> None:
        """Tell readers what there is.

        `facts` are JSON types, `lasting` is a JSON object of facts that seldom change.

        Without them they are as before; see `admin.metrics` for their keys.
        """
        self._facts = self._facts if facts is None else facts
        self._lasting = self._lasting if lasting is None else lasting
        self._number += 1
        scoreboards = list(self._generations.values())
        header = {
            "view": self._number,
            "facts": self._facts,
            "segments": [len(scoreboard.segments) for scoreboard in scoreboards],
        }
        lines = [
            json.dumps(header).encode(),
            self._lasting,
            *self._lines.values(),
            bytes(self._totals.names),
        ]
        catalogue, before = SealedFile("relay-catalogue", b"\n".join(lines)), self._catalogue
        outgrown = None
        if self._totals.cells * CELL_BYTES > os.fstat(self._totals_memory.fd).st_size:
            outgrown, self._totals_memory = (
                self._totals_memory,
                SealedMemory("relay-totals", 2 * self._totals.cells),
            )
        self._begin_to_write()
        self._write_totals()
        self._head.cells[VIEW] = self._number
        self._end_writing()
        self._catalogue, self._view = catalogue, None
        self._offer()
        if before is not None:
            before.close()
        if outgrown is not None:
            outgrown.close()

    def _sources(self) -> ViewFds:
        assert self._catalogue is not None  # noqa: S101  for mypy: published before anybody reads
        serving = self._generations.get(self._facts.get("generation", 0))
        states = serving.states if serving is not None else self._states
        segments = tuple(
            segment.fd
            for scoreboard in self._generations.values()
            for segment in scoreboard.segments
        )
        return ViewFds(
            self._head.fd, self._catalogue.fd, self._totals_memory.fd, states.fd, segments
        )

    def subscribe(self) -> socket.socket:
        """A socket for a new admin process, in which every view will be. Raises OSError.

        The admin process before it gets no more.
        """
        theirs = self._sender.open()
        if self._catalogue is None:
            self.publish()
        self._offer()
        return theirs

    def _offer(self) -> None:
        head, catalogue, totals, states, segments = self._sources()
        self._sender.offer(self._number, [head, catalogue, totals, states, *segments])

    def step(self) -> None:
        """Send the newest view, if it could not be sent before."""
        self._sender.step()

    def snapshot(self, timeout_s: float = PATIENCE_S) -> Snapshot:
        """What a reader would read now.

        Raises RelayError when the supervisor died in the middle of a write.
        """
        deadline = time.monotonic() + timeout_s
        if self._catalogue is None:
            self.publish()
        if self._view is None:
            self._view = View(self._sources(), self._known)
        while True:
            snapshot, why = self._view.read()
            if snapshot is not None:
                return snapshot
            if time.monotonic() > deadline:
                raise RelayError(why)
            time.sleep(0.0005)

    # Children.

    def share_with(self, scoreboard: Scoreboard) -> None:
        """Before a fork: the child gets the memory of its generation and no other's."""
        self._head.inherit(wanted=False)
        self._totals_memory.inherit(wanted=False)
        for states in self._all_states:
            states.inherit(wanted=states is scoreboard.states)
        for each in self._generations.values():
            for segment in each.segments:
                segment.inherit(wanted=each is scoreboard)

    def enter(self, scoreboard: Scoreboard) -> None:
        """In the child, before `close_files`: look at the generations before it."""
        for each in self._generations.values():
            if each is not scoreboard:
                with contextlib.suppress(OSError):  # limits across generations count less then
                    scoreboard.look_at(each)

    def close_files(self) -> None:
        """Let go of the descriptors: what a forked child does."""
        self._is_child = True
        fds = [self._head.fd, self._totals_memory.fd, *(states.fd for states in self._all_states)]
        fds += [
            segment.fd
            for scoreboard in self._generations.values()
            for segment in scoreboard.segments
        ]
        for fd in fds + ([self._catalogue.fd] if self._catalogue is not None else []):
            os.close(fd)
        self._sender.close()

    def close_reader(self) -> None:
        """The admin process is gone, or is to read no more."""
        self._sender.close()

"""All generations' scoreboards, as the supervisor keeps them.

A generation has memory of its own, made for its own names, so no reload can lack room.
When a worker ends, its counters are added to the totals. Names that no generation has
any more keep their totals; their cells are freed. Readers get a view: a catalogue with
all names, and descriptors that can only be read. Each view is a message to the admin
process.

Never: gives a child the memory of another generation, or the totals; waits for a
reader.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from typing import Any

from relay.errors import RelayError
from relay.shared.cell_layout import Layout, kind_of
from relay.shared.entities import RELAY, SLOT, SLOT_CPU_US, SUPERVISOR, Entities, Series
from relay.shared.scoreboard import OVER, Scoreboard, monotonic_ms
from relay.shared.sealed_memory import SealedFile, SealedMemory
from relay.shared.snapshot import (
    HEAD_CELLS,
    MAGIC,
    PATIENCE_S,
    SUPERVISOR_BEAT,
    VIEW,
    CatalogueCache,
    Snapshot,
    View,
    ViewFds,
)
from relay.shared.state_cells import FIRST_CELLS, StateCells
from relay.shared.view_channel import ViewSender
from relay.supervisor.published_totals import PublishedTotals


class Scoreboards:
    """The scoreboards of one relay.

    Methods raise OSError when the machine has no memory or descriptors left.
    """

    def __init__(self, states_cells: int = FIRST_CELLS) -> None:
        self._head = SealedMemory("relay-scoreboard", HEAD_CELLS)
        self._head.cells[0] = MAGIC
        self.totals = PublishedTotals(self._head)
        self.totals.add_entities({RELAY.name: [()], SUPERVISOR.name: [()]})
        self._states = StateCells(states_cells)
        self._all_states = [self._states]
        self._generations: dict[int, Scoreboard] = {}
        self._lines: dict[int, bytes] = {}  # of the catalogue, by generation
        self._facts: Mapping[str, Any] = {}
        self._lasting = b"{}"
        self._catalogue: SealedFile | None = None
        self._view: View | None = None
        self._known = CatalogueCache()
        self._view_number = 0
        self._sender = ViewSender()
        self._is_child = False

    # Generations.

    def begin(self, number: int, entities: Entities, slots: int) -> Scoreboard:
        """Make the scoreboard of a generation. Readers get it with `publish`."""
        outgrown = None
        if not self._states.has_room(entities):
            outgrown = self._states
            new_cells = 64 * sum(map(len, entities.values()))
            self._states = StateCells(2 * outgrown.capacity + new_cells)
            self._all_states.append(self._states)
        bases = self._states.take(entities)
        if outgrown is not None:
            self._states.copy_from(outgrown)
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
        self.totals.add_entities(entities)
        self.totals.add_entities({SLOT.name: [(str(slot),) for slot in range(slots)]})
        return scoreboard

    def lease(self, scoreboard: Scoreboard, slot: int) -> int:
        """A row for a worker, or for the checker (CHECKER_SLOT).

        If all rows are in use the scoreboard grows.
        """
        segments_before = len(scoreboard.segments)
        row = scoreboard.lease(slot)
        if len(scoreboard.segments) != segments_before:
            self.publish()
        return row

    def generation(self, number: int) -> Scoreboard:
        """The scoreboard of a generation. Raises KeyError after it was retired."""
        return self._generations[number]

    def retire(self, keep: Collection[int]) -> None:
        """Free one generation that is not in `keep` and has no process any more.

        Only one, so that the call stays short.
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

    def boards(self) -> list[Scoreboard]:
        """Every generation's scoreboard."""
        return list(self._generations.values())

    def states(self) -> list[StateCells]:
        """Every memory of state cells in use: several if the first was outgrown."""
        return list(self._all_states)

    # Counting.

    def fold(self, scoreboard: Scoreboard, row: int, slot: int = 0, cpu_us: int = 0) -> None:
        """Add the counters of an ended worker to the totals, and free its row.

        Its gauges vanish with it.
        """
        self.totals.fold(scoreboard.row(row), scoreboard.layout)
        if cpu_us:
            self.totals.add(SLOT, (str(slot),), Series(SLOT_CPU_US), cpu_us)
        with self.totals.writing():
            scoreboard.release(row)

    def count(self, name: str, by: int = 1, labels: tuple[str, ...] = ()) -> None:
        """Add to a counter that the supervisor itself counts.

        A forked child counts nothing, because its memory ends with it.
        """
        if self._is_child:
            return
        self.totals.add(kind_of(name), (), Series(name, labels), by)
        with self.totals.writing():
            pass

    def beat(self) -> None:
        """The supervisor's heartbeat."""
        self._head.cells[SUPERVISOR_BEAT] = monotonic_ms()

    # Readers.

    def publish(self, facts: Mapping[str, Any] | None = None, lasting: bytes | None = None) -> None:
        """Give readers a new view.

        `facts` are JSON types; `lasting` is a JSON object of facts that seldom change.
        Either stays as it was if it is left out. `relay.shared.messages.Facts` has the
        keys.
        """
        self._facts = self._facts if facts is None else facts
        self._lasting = self._lasting if lasting is None else lasting
        self._view_number += 1
        scoreboards = self.boards()
        header = {
            "view": self._view_number,
            "facts": self._facts,
            "segments": [len(scoreboard.segments) for scoreboard in scoreboards],
        }
        lines = [
            json.dumps(header).encode(),
            self._lasting,
            *self._lines.values(),
            self.totals.names,
        ]
        catalogue, before = SealedFile("relay-catalogue", b"\n".join(lines)), self._catalogue
        outgrown = self.totals.make_room()
        with self.totals.writing():
            self._head.cells[VIEW] = self._view_number
        self._catalogue, self._view = catalogue, None
        self._offer()
        if before is not None:
            before.close()
        if outgrown is not None:
            outgrown.close()

    def _sources(self) -> ViewFds:
        assert self._catalogue is not None  # noqa: S101  for mypy
        serving = self._generations.get(self._facts.get("generation", 0))
        states = serving.states if serving is not None else self._states
        segments = tuple(
            segment.fd
            for scoreboard in self._generations.values()
            for segment in scoreboard.segments
        )
        return ViewFds(self._head.fd, self._catalogue.fd, self.totals.fd, states.fd, segments)

    def subscribe(self) -> socket.socket:
        """A socket for a new admin process, on which it gets every view.

        The admin process before it gets no more views.
        """
        reader_end = self._sender.open()
        if self._catalogue is None:
            self.publish()
        self._offer()
        return reader_end

    def _offer(self) -> None:
        head, catalogue, totals, states, segments = self._sources()
        self._sender.offer(self._view_number, [head, catalogue, totals, states, *segments])

    def step(self) -> None:
        """Send the newest view if the admin process could not take it before."""
        self._sender.step()

    def snapshot(self, timeout_s: float = PATIENCE_S, *, routes: bool = True) -> Snapshot:
        """What a reader would read now. Raises RelayError if no view can be read.

        Without `routes` it is quick: their counters are left out.
        """
        deadline = time.monotonic() + timeout_s
        if self._catalogue is None:
            self.publish()
        if self._view is None:
            self._view = View(self._sources(), self._known)
        while True:
            snapshot, why = self._view.read(routes=routes)
            if snapshot is not None:
                return snapshot
            if time.monotonic() > deadline:
                raise RelayError(why)
            time.sleep(0.0005)

    # Children.

    def share_with(self, scoreboard: Scoreboard) -> None:
        """Before a fork: the child gets only the memory of its own generation."""
        self._head.inherit(wanted=False)
        self.totals.withhold()
        for states in self._all_states:
            states.inherit(wanted=states is scoreboard.states)
        for each in self._generations.values():
            for segment in each.segments:
                segment.inherit(wanted=each is scoreboard)

    def enter(self, scoreboard: Scoreboard) -> None:
        """In the child, before `close_files`: map the other generations for reading.

        A backend's connections are counted over all generations.
        """
        for each in self._generations.values():
            if each is not scoreboard:
                with contextlib.suppress(OSError):  # then its connections are not counted
                    scoreboard.look_at(each)

    def close_files(self) -> None:
        """Close the descriptors: in a forked child."""
        self._is_child = True
        fds = [self._head.fd, self.totals.fd, *(states.fd for states in self._all_states)]
        fds += [
            segment.fd
            for scoreboard in self._generations.values()
            for segment in scoreboard.segments
        ]
        for fd in fds + ([self._catalogue.fd] if self._catalogue is not None else []):
            os.close(fd)
        self._sender.close()

    def close_reader(self) -> None:
        """Send no more views."""
        self._sender.close()

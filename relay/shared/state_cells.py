"""The state cells, which all generations share.

They hold which backends have failed, the results of health checks, operators'
overrides, and the addresses of host names. An entity that two generations have uses one
block of cells for both, so old workers see what the new checker finds. A block is free
again when no generation has its entity.

Never: adds to a cell, except to the two versions; every other write is a plain store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relay.shared.entities import KINDS, Entities, Key
from relay.shared.sealed_memory import Cells, SealedMemory

# 4 MiB of address space: 100,000 backends by address, or 2,000 by name. Only the
# pages in use take memory.
FIRST_CELLS = 1 << 19
# One year. No configuration can ask for a longer wait, so such a value is damage and
# counts as no wait.
MOST_RETRY_MS = 31_536_000_000
_RESERVED = 8
_HALF = 1 << 63


class StateCells:
    """One shared memory and its blocks.

    `_blocks` has each block's first cell and its number of users, by kind and entity.
    """

    def __init__(self, cells: int = FIRST_CELLS) -> None:
        self._memory = SealedMemory("relay-states", cells)
        self._capacity = cells
        self._next = _RESERVED
        self._free: dict[int, list[int]] = {}
        self._blocks: dict[str, dict[Key, list[int]]] = {name: {} for name in _WIDTHS}
        self.users = 0

    @property
    def cells(self) -> Cells:
        """All cells."""
        return self._memory.cells

    @property
    def fd(self) -> int:
        """A descriptor for readers."""
        return self._memory.fd

    @property
    def capacity(self) -> int:
        """The number of cells."""
        return self._capacity

    def has_room(self, entities: Entities) -> bool:
        """Whether `take` can be called.

        When it cannot, a larger memory replaces this one.
        """
        needed = self._next
        for name, width in _WIDTHS.items():
            blocks = self._blocks[name]
            new = sum(1 for key in entities.get(name, ()) if key not in blocks)
            needed += width * max(0, new - len(self._free.get(width, ())))
        return needed <= self._capacity

    def take(self, entities: Entities) -> Mapping[str, Sequence[int]]:
        """A block for each entity that has states.

        Returns their first cells, by kind.
        """
        self.users += 1
        return {
            name: self._take(name, entities.get(name, ()), width) for name, width in _WIDTHS.items()
        }

    def _take(self, name: str, keys: Sequence[Key], width: int) -> list[int]:
        blocks, cells = self._blocks[name], self.cells
        free = self._free.setdefault(width, [])
        bases: list[int] = []
        for key in keys:
            block = blocks.get(key)
            if block is None:
                if free:
                    base = free.pop()
                    cells[base : base + width] = _zeros(width)  # the last owner's values
                else:
                    base = self._next
                    self._next += width
                block = blocks[key] = [base, 0]
            block[1] += 1
            bases.append(block[0])
        return bases

    def give_back(self, entities: Entities) -> None:
        """Free the blocks of a generation that has ended."""
        self.users -= 1
        for name, width in _WIDTHS.items():
            blocks, free = self._blocks[name], self._free.setdefault(width, [])
            for key in entities.get(name, ()):
                block = blocks[key]
                block[1] -= 1
                if not block[1]:
                    del blocks[key]
                    free.append(block[0])

    def base(self, name: str, key: Key) -> int | None:
        """The first cell of an entity's block; None if no generation has it."""
        block = self._blocks[name].get(key)
        return block[0] if block is not None else None

    def fill(self, name: str, offset: int, values: Mapping[Key, int]) -> None:
        """Store one state of all entities of a kind; 0 for those without a value."""
        cells = self.cells
        for key, (base, _) in self._blocks[name].items():
            cells[base + offset] = values.get(key, 0)

    def copy_from(self, other: StateCells) -> None:
        """Copy the states of the entities that both have."""
        for name, blocks in self._blocks.items():
            width = _WIDTHS[name]
            for key, (base, _) in blocks.items():
                source = other.base(name, key)
                if source is not None:
                    self.cells[base : base + width] = other.cells[source : source + width]

    def inherit(self, *, wanted: bool) -> None:
        """See `SealedMemory.inherit`."""
        self._memory.inherit(wanted=wanted)

    def close(self) -> None:
        """Give the memory up, when no generation uses it."""
        self._memory.close()


_WIDTHS = {kind.name: len(kind.states) for kind in KINDS.values() if kind.states}


def _zeros(cells: int) -> Cells:
    return memoryview(bytes(8 * cells)).cast("q")


def is_waiting(until_ms: float, now_ms: int) -> bool:
    """Whether a backend with this RETRY_UNTIL_MS has failed and may not be used yet."""
    return 0 < until_ms - now_ms <= MOST_RETRY_MS


def bump(cells: Cells, cell: int) -> None:
    """Add one.

    After the largest number comes the smallest, as a damaged cell may hold any.
    """
    value = cells[cell] + 1
    cells[cell] = value if value < _HALF else -_HALF

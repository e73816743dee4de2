"""The cells that all generations share.

They say whether a backend has failed or is healthy, what operators have changed, and where
host names lead. A thing that two generations have is one block of cells for both, so old
workers see what the new checker finds. A block is free again when no generation has its
thing any more.

Never: is added to, except for the two versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relay.shared.catalogue import KINDS, Entities, Key
from relay.shared.sealed_memory import Cells, SealedMemory

FIRST_CELLS = (
    1 << 19
)  # 4 MB, of which only what is used takes memory: 100,000 backends by address, or 16,000 by name
# A longer wait than any configuration can ask for is none: the cell was not written by
# a worker in its right mind.
MOST_RETRY_MS = 31_536_000_000
_RESERVED = 8
_HALF = 1 << 63


class StateCells:
    """One shared memory with its blocks.

    Made large; when it is full all the same, a larger one takes over.
    """

    def __init__(self, cells: int = FIRST_CELLS) -> None:
        self._memory = SealedMemory("relay-states", cells)
        self._capacity = cells
        self._next = _RESERVED
        self._free: dict[int, list[int]] = {}
        self._blocks: dict[str, dict[Key, list[int]]] = {
            name: {} for name in _WIDTHS
        }  # base, number of users
        self.users = 0

    @property
    def cells(self) -> Cells:
        """All of them."""
        return self._memory.cells

    @property
    def fd(self) -> int:
        """A descriptor for readers."""
        return self._memory.fd

    @property
    def capacity(self) -> int:
        """How many cells there are."""
        return self._capacity

    def has_room(self, entities: Entities) -> bool:
        """Whether `take` can be called."""
        needed = self._next
        for name, width in _WIDTHS.items():
            blocks = self._blocks[name]
            new = sum(1 for key in entities.get(name, ()) if key not in blocks)
            needed += width * max(0, new - len(self._free.get(width, ())))
        return needed <= self._capacity

    def take(self, entities: Entities) -> Mapping[str, Sequence[int]]:
        """A block for each thing that has states; where they begin, by kind."""
        self.users += 1
        return {
            name: self._take(name, entities.get(name, ()), width) for name, width in _WIDTHS.items()
        }

    def _take(self, name: str, keys: Sequence[Key], width: int) -> list[int]:
        blocks, cells, free, bases = (
            self._blocks[name],
            self.cells,
            self._free.setdefault(width, []),
            [],
        )
        for key in keys:
            block = blocks.get(key)
            if block is None:
                if free:
                    base = free.pop()
                    cells[base : base + width] = _zeros(width)  # what it was for is over
                else:
                    base = self._next
                    self._next += width
                block = blocks[key] = [base, 0]
            block[1] += 1
            bases.append(block[0])
        return bases

    def give_back(self, entities: Entities) -> None:
        """The blocks of a generation that is over."""
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
        """Where the block of a thing begins; None when no generation has it."""
        block = self._blocks[name].get(key)
        return block[0] if block is not None else None

    def fill(self, name: str, offset: int, values: Mapping[Key, int]) -> None:
        """One state of all entities of a kind; 0 where there is no value."""
        cells = self.cells
        for key, (base, _) in self._blocks[name].items():
            cells[base + offset] = values.get(key, 0)

    def copy_from(self, other: StateCells) -> None:
        """Begin with what another one says of the same entities."""
        for name, blocks in self._blocks.items():
            width = _WIDTHS[name]
            for key, (base, _) in blocks.items():
                theirs = other.base(name, key)
                if theirs is not None:
                    self.cells[base : base + width] = other.cells[theirs : theirs + width]

    def inherit(self, *, wanted: bool) -> None:
        """As of `SealedMemory`."""
        self._memory.inherit(wanted=wanted)

    def close(self) -> None:
        """No generation uses it any more."""
        self._memory.close()


_WIDTHS = {kind.name: len(kind.states) for kind in KINDS.values() if kind.states}


def _zeros(cells: int) -> Cells:
    return memoryview(bytes(8 * cells)).cast("q")


def is_waiting(until_ms: float, now_ms: int) -> bool:
    """Whether a backend with this RETRY_UNTIL_MS is not used now."""
    return 0 < until_ms - now_ms <= MOST_RETRY_MS


def bump(cells: Cells, cell: int) -> None:
    """One more, also after the largest number that fits: what another process wrote
    there may be anything.
    """
    value = cells[cell] + 1
    cells[cell] = value if value < _HALF else -_HALF

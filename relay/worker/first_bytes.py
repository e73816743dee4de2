"""The first bytes of a client, kept until a backend has taken them.

They are read before there is a backend when the pool is sticky by cookie. They are also
kept when a backend was lost before it took them, so that another backend can have them.

Never: changes a byte, or reads a socket.
"""

from __future__ import annotations

from relay.core.cookie import Inserter
from relay.core.hello import NEED_DATA
from relay.core.sniff import Sniffer, SniffResult
from relay.core.sticky_names import StickyNames


class FirstBytes:
    """What a client sent first.

    `found` is what the request's cookie says. `head` is to be forwarded before anything
    else. `inserter` adds our cookie to the first response, and is None when that is
    done.
    """

    __slots__ = ("_pieces", "_sniffer", "found", "inserter")

    def __init__(self, names: StickyNames | None = None) -> None:
        self._sniffer = Sniffer(names) if names is not None else None
        self._pieces: list[bytes] = []
        self.found = SniffResult(http=False, detail="nothing was read")
        self.inserter: Inserter | None = None

    def add(self, data: bytes) -> bool:
        """Keep what was read. True when it decides the choice of the backend."""
        self._pieces.append(data)
        found = self._sniffer.feed(data) if self._sniffer is not None else NEED_DATA
        if not isinstance(found, SniffResult):
            return False
        self.found = found
        return True

    def keep(self, data: bytes) -> None:
        """Keep bytes that no backend has taken; they decide nothing."""
        self._pieces.append(data)

    @property
    def head(self) -> bytes:
        """All bytes that were read and not forwarded."""
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    def forget_head(self) -> None:
        """A backend has taken the bytes, or holds them."""
        self._pieces.clear()

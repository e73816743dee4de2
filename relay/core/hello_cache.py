"""A cache of parsed ClientHellos: most clients send the same one, except random bytes.

Theory of operation. The result of `parse_hello` does not depend on the random, the
session id, the key shares and the pre-shared key. Two hellos that differ only there
have the same result. For each size of hello, a `Struct` extracts all other bytes, which
are the key of the cache. There is one layout per size. With the layout of another hello
the skipped range could cover the server name, and hellos for two names would share a
key.
Measured with timeit, CPython 3.11: 0.3 µs instead of 3.9 µs for 1,554 bytes.

Some clients shuffle their extensions every time. After MAX_MISSES misses in a row, a
size is not cached any more.

Never: accepts a hello on its own: a hello that is not cached goes to `parse_hello`, and
only hellos that `parse_hello` accepted are cached.
Next: `relay.core.routes.RouteTable.find`
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from relay.core.hello import Hello, Parsed, parse_hello

MAX_CACHED_BYTES: Final = 4096
MAX_SIZES: Final = 64
MAX_HELLOS: Final = 64  # per size: for server names of the same length
MAX_MISSES: Final = 64

_RANDOM_BYTES = 32
_SESSION_ID_AT = 43  # record header 5, message header 4, version 2, random 32
_PRE_SHARED_KEY, _KEY_SHARE = 41, 51

Fixed = tuple[bytes, ...]


class _SizeClass:
    """The layout of all hellos of one size (a `struct` format), and parsed hellos."""

    __slots__ = ("hellos", "layout", "misses", "unpack")

    def __init__(self, layout: str, misses: int) -> None:
        self.layout = layout
        self.unpack: Callable[[bytes], Fixed] = Struct(layout).unpack
        self.hellos: dict[Fixed, Hello] = {}
        self.misses = misses


class HelloCache:
    """`parse_hello` with a cache of at most MAX_SIZES * MAX_HELLOS hellos."""

    def __init__(self) -> None:
        self._sizes: dict[int, _SizeClass] = {}

    def parse(self, data: bytes) -> Parsed:
        """What `parse_hello` says about everything a client has sent so far."""
        entry = self._sizes.get(len(data))
        if entry is not None:
            hello = entry.hellos.get(entry.unpack(data))
            if hello is not None:
                entry.misses = 0
                return hello
        parsed = parse_hello(data)
        if isinstance(parsed, Hello):
            self._store(data, parsed, entry)
        return parsed

    def _store(self, data: bytes, hello: Hello, entry: _SizeClass | None) -> None:
        size = len(data)
        if (
            size > MAX_CACHED_BYTES
            or 5 + int.from_bytes(data[3:5], "big") != size
            or 9 + int.from_bytes(data[6:9], "big") != size
        ):
            return  # more than one record, or bytes after it
        misses = entry.misses + 1 if entry is not None else 1
        if entry is not None and misses > MAX_MISSES:
            entry.hellos.clear()
            return
        layout = _layout_of(data)
        if entry is None or entry.layout != layout or len(entry.hellos) >= MAX_HELLOS:
            if entry is None and len(self._sizes) >= MAX_SIZES:
                self._sizes.clear()
            entry = self._sizes[size] = _SizeClass(layout, misses)
        entry.misses = misses
        entry.hellos[entry.unpack(data)] = hello


def _layout_of(data: bytes) -> str:
    """The `struct` format that extracts the fixed parts of a hello (RFC 8446, 4.1.2).

    `parse_hello` must have accepted the hello.
    """
    session_id_bytes = data[_SESSION_ID_AT]
    parts = [f"{_SESSION_ID_AT - _RANDOM_BYTES}s{_RANDOM_BYTES}x1s{session_id_bytes}x"]
    start = at = _SESSION_ID_AT + 1 + session_id_bytes
    at += 2 + int.from_bytes(data[at : at + 2], "big")  # cipher suites
    at += 1 + data[at]  # compression methods
    at += 2
    while at < len(data):
        kind = int.from_bytes(data[at : at + 2], "big")
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        at += 4
        if kind in {_KEY_SHARE, _PRE_SHARED_KEY}:
            parts.append(f"{at - start}s{length}x")
            start = at + length
        at += length
    parts.append(f"{len(data) - start}s")
    return "".join(parts)

"""A ClientHello that comes in pieces: how many bytes there must be before it is worth looking again.

A peek shows every time all that has come. So a client that sends its hello byte by byte, or
in records of one byte, could have the same bytes read again and again. Here each record is
walked over once, and between two looks the client has sent all that can be missing at least.

Never: judges a hello, or keeps a byte of it but the four that say its length.
Next: `relay.core.hello.parse_hello`
"""

from __future__ import annotations

from relay.core.hello import MAX_HELLO_BYTES, MAX_RECORD_BYTES, MAX_RECORDS

_RECORD_HEADER, _MESSAGE_HEADER = 5, 4
_HANDSHAKE, _CLIENT_HELLO = 22, 1


class PartialHello:
    """`wanted` is how many bytes the hello and its records have at least."""

    __slots__ = ("_at", "_have", "_head", "_records", "wanted")

    def __init__(self) -> None:
        self.wanted = 0
        self._at = 0  # where the first record begins that is not there as a whole
        self._records = 0
        self._have = 0  # bytes of the message in the records before it
        self._head = b""  # its first four

    def look(self, data: bytes | memoryview) -> bool:
        """Whether `parse_hello` would say more of these bytes than that it lacks some.

        `data` begins with what it began with the last time. Bytes that can be no part of a
        hello are for `parse_hello` to judge, too.
        """
        size = len(data)
        while True:
            at = self._at
            if (size > at and data[at] != _HANDSHAKE) or (size > at + 1 and data[at + 1] != 3):
                return True
            body = at + _RECORD_HEADER
            length = int.from_bytes(data[at + 3 : body], "big") if size >= body else 0
            begin = bytes(data[body : body + min(length, _MESSAGE_HEADER)])
            head = (self._head + begin)[:_MESSAGE_HEADER]
            whole = len(head) == _MESSAGE_HEADER
            total = _MESSAGE_HEADER + (int.from_bytes(head[1:], "big") if whole else 0)
            if (
                length > MAX_RECORD_BYTES
                or self._records >= MAX_RECORDS
                or head[:1] not in {b"", bytes((_CLIENT_HELLO,))}
                or total > _MESSAGE_HEADER + MAX_HELLO_BYTES
            ):
                return True
            missing = total - self._have  # of the message, from this record on
            if size < body:
                self.wanted = body + missing
                return False
            if length >= missing:
                self.wanted = body + missing
                return size >= self.wanted
            if size < body + length:
                # What this record does not bring comes in one more at least.
                self.wanted = body + length + _RECORD_HEADER + missing - length
                return False
            self._at, self._head = body + length, head
            self._have += length
            self._records += 1

"""A ClientHello that arrives in pieces: how many bytes the next look needs.

The relay peeks at the socket, so each look sees all bytes again. Without this, a client
that sends its hello byte by byte, or in records of one byte, would make the relay read
the same bytes again and again. Here each record is walked once, and the next look waits
until the smallest number of bytes that can complete the hello is there.

Never: accepts or refuses a hello; keeps more of it than its first four bytes.
Next: `relay.core.hello.parse_hello`
"""

from __future__ import annotations

from relay.core.hello import MAX_HELLO_BYTES, MAX_RECORD_BYTES, MAX_RECORDS

_RECORD_HEADER, _MESSAGE_HEADER = 5, 4
_HANDSHAKE, _CLIENT_HELLO = 22, 1


class PartialHello:
    """`wanted` is the smallest size that the hello and its records can have."""

    __slots__ = ("_at", "_have", "_head", "_records", "wanted")

    def __init__(self) -> None:
        self.wanted = 0
        self._at = 0  # start of the first incomplete record
        self._records = 0
        self._have = 0  # bytes of the message in the complete records
        self._head = b""  # the first four bytes of the message

    def look(self, data: bytes | memoryview) -> bool:
        """Whether `parse_hello` would return a result for these bytes, not NEED_DATA.

        `data` starts with the same bytes as the last time. True also for bytes that
        cannot be a hello, because `parse_hello` then says what is wrong.
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
                # The rest of the message needs at least one more record.
                self.wanted = body + length + _RECORD_HEADER + missing - length
                return False
            self._at, self._head = body + length, head
            self._have += length
            self._records += 1

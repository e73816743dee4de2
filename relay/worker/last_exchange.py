"""The last HTTP/1 exchange of a connection, to know later whether it is complete.

Whether an idle connection is between two messages can be asked when it is about to end
(see `relay.worker.quiet_ends`). The bytes that say so are gone by then. So the request
and the beginning of its answer are kept. They are parsed only when somebody asks.

Never: parses a byte while it is relayed; says "complete" if a request may be
unanswered.
"""

from __future__ import annotations

import httptools

from relay.worker.message_borders import Request

KEPT_BYTES = 2_048  # of a request, and of an answer
MOST_BYTES = 8_192  # of a request that comes in several pieces
TAIL_BYTES = 7
ANSWER = b"HTTP/1."
_VERSION = b" HTTP/1."
_LAST_CHUNK = b"0\r\n\r\n"
_FIRST_FINAL = 200


class LastExchange:
    """One connection's. `lost`: the client pipelines, so it is not known any more."""

    __slots__ = ("answer", "answer_at", "bytes_in", "lost", "request", "tail")

    def __init__(self) -> None:
        self.request = b""
        self.answer: bytes | None = None  # its first record; None if none has come
        self.answer_at = 0  # how many bytes the backend had sent before it
        self.bytes_in = 0  # up to the end of the request
        self.tail = b""  # of the last record
        self.lost = False

    def from_client(self, data: bytes, bytes_in: int) -> None:
        """The client has sent this; `bytes_in` includes it."""
        if self.answer is None and len(self.request) <= MOST_BYTES:
            self.request += data
        elif self.answer is None:
            self.request = b""  # too long to be kept
        else:
            if self.request.count(_VERSION) > 1 or not self.answer.startswith(ANSWER):
                self.lost = True
            self.request, self.answer = data, None
        self.bytes_in = bytes_in

    def from_backend(self, data: bytes, tail: bytes, bytes_before: int) -> None:
        """The backend has sent a record that begins and ends like this."""
        if self.answer is None:
            self.answer, self.answer_at = data, bytes_before
        self.tail = tail

    def forget(self) -> None:
        """What follows is not kept."""
        self.request, self.answer, self.bytes_in = b"", ANSWER, -1

    def under_way(self, bytes_in: int, bytes_out: int) -> tuple[bytes, bytes] | None:
        """The request that is not answered, and its answer so far; None if unknown."""
        if bytes_in != self.bytes_in or not self.request:
            return None
        if self.answer is None:
            return self.request, b""
        whole = len(self.answer) == bytes_out - self.answer_at
        known = whole and not self.is_complete(bytes_in, bytes_out)
        return (self.request, self.answer) if known else None

    def is_complete(self, bytes_in: int, bytes_out: int, *, last_chunk: bool = False) -> bool:
        """Whether nothing is under way, after so many bytes from either side.

        `last_chunk`: the bytes that came after `tail` ended as a chunked answer does.
        """
        if self.lost or self.answer is None or bytes_in != self.bytes_in:
            return False
        request = Request()
        if not request.feed(self.request) or not request.complete:
            return False
        size = bytes_out - self.answer_at
        answer = _Head(self.answer[:size])
        if not answer.is_final:
            return False
        if request.wants_no_body:
            return True
        if answer.size is not None:
            return answer.size == size
        return answer.chunked and (
            last_chunk or self.tail.endswith(b"\r\n" + _LAST_CHUNK) or self.tail == _LAST_CHUNK
        )


class _Head:
    """The head of an answer: what it says of the answer's end."""

    def __init__(self, data: bytes) -> None:
        self.is_final = False
        self.size: int | None = None  # of the whole answer
        events = _Events()
        parser = httptools.HttpResponseParser(events)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return
        self.is_final = events.heads == 1 and parser.get_status_code() >= _FIRST_FINAL
        self.chunked = events.chunked
        if events.complete:
            self.size = len(data)
        elif events.length is not None and not events.chunked:
            self.size = data.find(b"\r\n\r\n") + 4 + events.length


class _Events:
    """What the parser has seen. It must not refer to the parser."""

    def __init__(self) -> None:
        self.heads = 0
        self.complete = self.chunked = False
        self.length: int | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        name = name.lower()
        if name == b"content-length" and value.strip().isdigit():
            self.length = int(value)
        elif name == b"transfer-encoding":
            self.chunked = b"chunked" in value.lower()

    def on_headers_complete(self) -> None:
        """Called by httptools."""
        self.heads += 1

    def on_message_complete(self) -> None:
        """Called by httptools."""
        self.complete = True

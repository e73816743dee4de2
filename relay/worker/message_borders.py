"""Follows the HTTP/1 messages of a connection, beginning in the middle of it.

A connection that is about to end is followed, so that it can end between two messages.
What came before is not known. So it waits for a place where it knows where it is: a
record of the client that begins with a request line, or the first bytes of an answer
that was outstanding. A client that pipelines, or that changes the protocol, is not
followed any further.

Never: changes a byte, reads a socket, raises on what a peer sent.
"""

from __future__ import annotations

import re

import httptools

_REQUEST_LINE = re.compile(rb"[A-Z][A-Z_-]{0,31} [^ \r\n]+ HTTP/1\.[01]\r?\n")
_ANSWER = b"HTTP/1."
_LAST_CHUNK = b"0\r\n\r\n"
_FIRST_FINAL = 200
_ERRORS = (httptools.HttpParserError, httptools.HttpParserUpgrade)


class _Events:
    """What a parser has seen of one message. It must not refer to the parser."""

    __slots__ = ("begun", "complete", "has_head", "is_open")

    def __init__(self) -> None:
        self.begun = 0
        self.complete = self.has_head = self.is_open = False

    def on_message_begin(self) -> None:
        """Called by httptools."""
        self.begun += 1
        self.is_open, self.has_head = True, False

    def on_headers_complete(self) -> None:
        """Called by httptools."""
        self.has_head = True

    def on_message_complete(self) -> None:
        """Called by httptools."""
        self.is_open, self.complete = False, True


class Request:
    """A request that is followed from its first byte."""

    def __init__(self) -> None:
        self.events = _Events()
        self._parser = httptools.HttpRequestParser(self.events)

    def feed(self, data: bytes) -> bool:
        """False if this cannot be followed."""
        if self.complete:  # more than one request at a time
            return False
        try:
            self._parser.feed_data(data)
        except _ERRORS:
            return False
        return self.events.begun <= 1

    @property
    def complete(self) -> bool:
        """Whether its last byte has come."""
        return self.events.complete

    @property
    def wants_no_body(self) -> bool:
        """Whether the answer has a head only."""
        return bytes(self._parser.get_method()) == b"HEAD"


class _Answer:
    """The answer to one request, with the interim answers before it."""

    def __init__(self) -> None:
        self.begun = False
        self._events = _Events()
        self._parser = httptools.HttpResponseParser(self._events)

    def feed(self, data: bytes) -> bool:
        """False if this cannot be followed."""
        if not self.begun and not data.startswith(_ANSWER):
            return False
        self.begun = True
        try:
            self._parser.feed_data(data)
        except _ERRORS:
            return False
        return True

    def complete(self, *, head_only: bool) -> bool:
        """Whether its last byte has come."""
        events = self._events
        whole = events.has_head if head_only else events.complete and not events.is_open
        return whole and self._parser.get_status_code() >= _FIRST_FINAL


class MessageBorders:
    """One connection.

    `between` is True when every request that came is answered, as far as is known.
    `last_chunk`: an answer that is not followed ended as a chunked one does.
    """

    __slots__ = ("_answer", "_request", "between", "last_chunk", "lost")

    def __init__(self) -> None:
        self.between = self.last_chunk = False
        self.lost = False
        self._request: Request | None = None
        self._answer: _Answer | None = None

    @property
    def pending(self) -> bool:
        """Whether a message is known to be incomplete or not answered."""
        return self._answer is not None

    def begin(self, request: bytes, answer: bytes) -> None:
        """What has come before of an exchange that is not complete."""
        self.from_client(request)
        if answer:
            self.from_backend(answer)

    def await_answer(self) -> None:
        """The client has sent something last, which is not known."""
        self._answer = _Answer()

    def from_client(self, data: bytes) -> None:
        """The client has sent this."""
        self.between = self.last_chunk = False
        if self.lost:
            return
        if self._request is not None:
            self._feed_request(self._request, data)
        elif self._answer is not None:  # the rest of a request that began earlier
            if _REQUEST_LINE.match(data):
                self._give_up()  # there are two
            elif self._answer.begun:
                self._answer = None
        else:
            self._answer = _Answer()
            if _REQUEST_LINE.match(data):
                self._request = Request()
                self._feed_request(self._request, data)

    def _feed_request(self, request: Request, data: bytes) -> None:
        if not request.feed(data):
            self._give_up()

    def from_backend(self, data: bytes) -> None:
        """The backend has sent this."""
        self.between = self.last_chunk = False
        answer, request = self._answer, self._request
        if self.lost:
            return
        if answer is None:
            self.last_chunk = data.endswith(_LAST_CHUNK)
            return
        if not answer.feed(data):
            self._give_up()
        elif answer.complete(head_only=request is not None and request.wants_no_body):
            if request is not None and not request.complete:
                self._give_up()  # the client still sends a body that is refused already
                return
            self.between = True
            self._answer = self._request = None

    def _give_up(self) -> None:
        self.lost = True
        self._answer = self._request = None

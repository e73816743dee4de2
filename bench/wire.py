"""The messages of the benchmark: minimal HTTP/1.1, which layer-7 gateways relay too.

The answer to `GET /r/N` has exactly N bytes. The answer to `GET /b/N/R` is a head and N
bytes of the pattern, written R bytes at a time. `POST /u` sends Content-Length bytes of
the pattern, and the answer is how many were correct. Every byte has one correct value.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from bench.pki import GATEWAY_NAME

REQUEST_BYTES = 64
BROWSER_REQUEST_BYTES = 512  # as a browser's request with cookies
# A prime, so that after a lost, repeated or moved record every later byte differs.
PATTERN_PERIOD = 65_521
_stream = b"".join(
    hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(PATTERN_PERIOD // 32 + 1)
)[:PATTERN_PERIOD]
# Twice, so that a slice of up to one period can start anywhere.
PATTERN = _stream * 2
MAX_HEAD_BYTES = 8_192


@dataclass(frozen=True, slots=True)
class Head:
    """A parsed head: `start` is its first line, `body_at` the offset of the body."""

    start: str
    length: int
    body_at: int


def pattern_at(offset: int, size: int) -> bytes:
    """`size` bytes of the pattern (at most a period) from a stream offset."""
    start = offset % PATTERN_PERIOD
    return PATTERN[start : start + size]


def parse_head(data: bytes) -> Head | None:
    """The head of `data`; None while incomplete. Raises ValueError."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise ValueError("head too long")
        return None
    lines = data[:end].decode("latin-1").split("\r\n")
    length = 0
    for line in lines[1:]:
        name, _, value = line.partition(":")
        lowered = name.lower()
        if lowered == "content-length":
            length = int(value)
        elif lowered == "transfer-encoding":
            raise ValueError("a chunked message, which the benchmark never sends")
    return Head(lines[0], length, end + 4)


def render_request(path: str, size: int = REQUEST_BYTES, cookie: str = "") -> bytes:
    """A GET of exactly `size` bytes."""
    line = f"Cookie: {cookie}\r\n" if cookie else ""
    head = f"GET {path} HTTP/1.1\r\nHost: {GATEWAY_NAME}\r\n{line}X-Pad: "
    return head.encode() + b"x" * (size - len(head) - 4) + b"\r\n\r\n"


def render_upload_head(length: int) -> bytes:
    """The head of a POST of `length` bytes."""
    return f"POST /u HTTP/1.1\r\nHost: {GATEWAY_NAME}\r\nContent-Length: {length}\r\n\r\n".encode()


def render_response(size: int) -> bytes:
    """A 200 of exactly `size` bytes with its head; the body is the pattern's start."""
    for digits in range(1, 7):
        head_bytes = len("HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n") + digits
        length = size - head_bytes
        if len(str(length)) == digits:
            return f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + pattern_at(
                0, length
            )
    raise ValueError(f"no response has {size} bytes")


def render_bulk_head(length: int) -> bytes:
    """The head before `length` bytes of the pattern."""
    return f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode()


def render_receipt(good_bytes: int) -> bytes:
    """The answer to an upload: how many bytes were correct."""
    return f"HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\n{good_bytes:025d}".encode()

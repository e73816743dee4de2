"""Lets OpenSSL read and write memory in place of the socket of a connection.

What OpenSSL writes to memory is held as it is (`Sealed`) if the socket does not take
it.

Never: reads or writes a socket; leaves a connection without its socket.
Next: `relay.tls.streaming.stream`
"""

from __future__ import annotations

from typing import Any, Protocol

from relay.sockets import StreamSocket
from relay.tls.raw import NULL, Pointer, ffi, lib
from relay.tls.records import write

_MEMORY: Any = lib.BIO_s_mem()
# How many bytes are left in a memory; where they start.
left: Any = lib.BIO_get_mem_data
start: Any = ffi.new("char **")


class Sealed:
    """Records that OpenSSL has encrypted; `size` bytes of them are the other side's."""

    __slots__ = ("data", "size")

    def __init__(self, data: bytes, size: int) -> None:
        self.data = data
        self.size = size


class End(Protocol):
    """A connection; see `relay.worker.connection.Connection`."""

    sock: StreamSocket
    ssl: Pointer
    held: Any
    shut: bool
    closing: bool
    wants_write: bool
    pause: int
    errno: int  # of a write that failed, until what has come before is read


def give_memory(ssl: Pointer, data: Pointer, size: int) -> tuple[Pointer, Pointer]:
    """Let OpenSSL read so many bytes at `data`, and write into memory."""
    chunk = lib.BIO_new_mem_buf(data, size) if size else lib.BIO_new(_MEMORY)
    answer = lib.BIO_new(_MEMORY)
    if NULL in (chunk, answer):
        for bio in (chunk, answer):
            lib.BIO_free(bio)
        lib.ERR_clear_error()
        raise MemoryError("OpenSSL could not read from memory")
    lib.BIO_set_mem_eof_return(chunk, -1)
    lib.SSL_set_bio(ssl, chunk, answer)
    return chunk, answer


def give_socket(source: End) -> None:
    """Let OpenSSL read and write the socket again. This frees both memories."""
    if lib.SSL_set_fd(source.ssl, source.sock.fileno()) != 1:
        lib.ERR_clear_error()
        raise MemoryError("OpenSSL could not go back to its socket")


def seal(sink: End, held: bytes) -> Sealed | bytes:
    """Encrypt all that the sink did not take.

    Returns the same bytes if OpenSSL cannot write to this connection any more.
    """
    ssl = sink.ssl
    _, answer = give_memory(ssl, NULL, 0)
    whole = write(ssl, held, len(held)) == len(held)
    data: bytes = ffi.buffer(start[0], size)[:] if (size := left(answer, start)) else b""
    give_socket(sink)
    if not whole:
        lib.ERR_clear_error()
        return held
    return Sealed(data, len(held))

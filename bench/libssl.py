"""TLS by the system's OpenSSL, through ctypes: it can update its keys at any time.

Neither the standard library nor the cryptography package has SSL_key_update. Two
different builds of OpenSSL meet in this way, too.

Never: verifies a name; the gateway's tests do.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from ctypes import c_char_p, c_int, c_long, c_void_p
from pathlib import Path

BUFFER_BYTES = 16_384
WANT_READ, WANT_WRITE, ZERO_RETURN = 2, 3, 6
_PEM = 1
_VERIFY_PEER = 3  # and fail without a certificate
_SET_SERVER_NAME, _MODE, _SET_MIN_VERSION = 55, 33, 123
_PARTIAL_WRITES = 3  # and the bytes may move
_TLS13 = 0x0304
_NOT_REQUESTED, _REQUESTED = 0, 1


class LibsslError(Exception):
    """A call of OpenSSL has failed; the message has the reason."""


def _load() -> ctypes.CDLL:
    name = ctypes.util.find_library("ssl")
    if name is None:
        raise LibsslError("the system has no libssl: apt-get install libssl3")
    lib = ctypes.CDLL(name)
    for function, result, arguments in (
        ("TLS_client_method", c_void_p, ()),
        ("TLS_server_method", c_void_p, ()),
        ("SSL_CTX_new", c_void_p, (c_void_p,)),
        ("SSL_CTX_ctrl", c_long, (c_void_p, c_int, c_long, c_void_p)),
        ("SSL_CTX_use_certificate_chain_file", c_int, (c_void_p, c_char_p)),
        ("SSL_CTX_use_PrivateKey_file", c_int, (c_void_p, c_char_p, c_int)),
        ("SSL_CTX_load_verify_locations", c_int, (c_void_p, c_char_p, c_char_p)),
        ("SSL_CTX_set_verify", None, (c_void_p, c_int, c_void_p)),
        ("SSL_CTX_set_session_id_context", c_int, (c_void_p, c_char_p, ctypes.c_uint)),
        ("SSL_new", c_void_p, (c_void_p,)),
        ("SSL_free", None, (c_void_p,)),
        ("SSL_ctrl", c_long, (c_void_p, c_int, c_long, c_char_p)),
        ("SSL_set_fd", c_int, (c_void_p, c_int)),
        ("SSL_set_connect_state", None, (c_void_p,)),
        ("SSL_set_accept_state", None, (c_void_p,)),
        ("SSL_do_handshake", c_int, (c_void_p,)),
        ("SSL_read", c_int, (c_void_p, c_void_p, c_int)),
        ("SSL_write", c_int, (c_void_p, c_void_p, c_int)),
        ("SSL_get_error", c_int, (c_void_p, c_int)),
        ("SSL_key_update", c_int, (c_void_p, c_int)),
        ("SSL_shutdown", c_int, (c_void_p,)),
        ("ERR_get_error", ctypes.c_ulong, ()),
        ("ERR_error_string", c_char_p, (ctypes.c_ulong, c_void_p)),
        ("ERR_clear_error", None, ()),
    ):
        call = getattr(lib, function)
        call.restype, call.argtypes = result, arguments
    return lib


_lib = _load()
_buffer = ctypes.create_string_buffer(BUFFER_BYTES)
_view = memoryview(_buffer).cast("B")


class Context:
    """What the connections of one peer share. TLS 1.3 only."""

    def __init__(self, pem: Path, ca: Path, *, server: bool) -> None:
        method = _lib.TLS_server_method() if server else _lib.TLS_client_method()
        self.pointer = _lib.SSL_CTX_new(method)
        self.server = server
        file = str(pem).encode()
        good = (
            _lib.SSL_CTX_use_certificate_chain_file(self.pointer, file) == 1
            and _lib.SSL_CTX_use_PrivateKey_file(self.pointer, file, _PEM) == 1
            and _lib.SSL_CTX_load_verify_locations(self.pointer, str(ca).encode(), None) == 1
        )
        if not good:
            raise LibsslError(reason())
        _lib.SSL_CTX_set_verify(self.pointer, _VERIFY_PEER, None)
        _lib.SSL_CTX_set_session_id_context(self.pointer, b"bench", 5)
        _lib.SSL_CTX_ctrl(self.pointer, _SET_MIN_VERSION, _TLS13, None)
        _lib.SSL_CTX_ctrl(self.pointer, _MODE, _PARTIAL_WRITES, None)


class Connection:
    """TLS on one non-blocking socket."""

    __slots__ = ("_ssl",)

    def __init__(self, context: Context, fd: int, server_name: str = "") -> None:
        self._ssl = _lib.SSL_new(context.pointer)
        _lib.SSL_set_fd(self._ssl, fd)
        if context.server:
            _lib.SSL_set_accept_state(self._ssl)
        else:
            _lib.SSL_set_connect_state(self._ssl)
            _lib.SSL_ctrl(self._ssl, _SET_SERVER_NAME, 0, server_name.encode())

    def handshake(self) -> bool:
        """Do a step. Whether the handshake is complete."""
        result = _lib.SSL_do_handshake(self._ssl)
        if result == 1:
            return True
        self._wants(result)
        return False

    def read(self) -> memoryview | None:
        """The next bytes, valid until the next read; None if there are none now.

        Empty at a close_notify. Raises LibsslError, also at an end without one.
        """
        size = _lib.SSL_read(self._ssl, _buffer, BUFFER_BYTES)
        if size > 0:
            return _view[:size]
        return _view[:0] if self._wants(size) == ZERO_RETURN else None

    def write(self, address: int, size: int) -> int:
        """Write bytes at this address. Returns how many, 0 if there is no room now."""
        written: int = _lib.SSL_write(self._ssl, address, size)
        if written > 0:
            return written
        self._wants(written)
        return 0

    def update_keys(self, *, ask: bool) -> None:
        """Update our key with the next record, and `ask` for the peer's."""
        if _lib.SSL_key_update(self._ssl, _REQUESTED if ask else _NOT_REQUESTED) != 1:
            raise LibsslError(reason())

    def close_notify(self) -> bool:
        """Say that nothing more comes. Whether the socket has taken it."""
        result = _lib.SSL_shutdown(self._ssl)
        if result < 0 and self._wants(result) == WANT_WRITE:
            return False
        _lib.ERR_clear_error()
        return True

    def free(self) -> None:
        """Free it, once."""
        _lib.SSL_free(self._ssl)

    def _wants(self, result: int) -> int:
        error: int = _lib.SSL_get_error(self._ssl, result)
        if error in (WANT_READ, WANT_WRITE, ZERO_RETURN):
            return error
        raise LibsslError(reason())


def reason() -> str:
    """OpenSSL's words for the last failure."""
    code = _lib.ERR_get_error()
    _lib.ERR_clear_error()
    if not code:
        return "the connection was reset, or ended without a close_notify"
    text: bytes = _lib.ERR_error_string(code, None)
    return text.decode()

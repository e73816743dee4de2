"""ClientHellos as bytes, made beforehand: sending them needs no TLS library.

`python -m bench.hellos` sends the corpus of the tests through relay, nginx and HAProxy:
see `bench.hello_corpus`.

Never: opens a socket.
"""

from __future__ import annotations

import os

_SUITES_13 = bytes.fromhex("130113021303")
_SUITES_12 = bytes.fromhex("c02bc02fc02cc030")
_GROUPS = bytes.fromhex("001d0017")  # X25519, P-256
_SIGNATURES = bytes.fromhex("0403080404010503080508060501")
_X25519 = bytes.fromhex("001d")


def _block(data: bytes, width: int = 2) -> bytes:
    return len(data).to_bytes(width, "big") + data


def _extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + _block(body)


def make_hello(name: str, *, share: bool = True, tls13: bool = True) -> bytes:
    """One record with a whole ClientHello for this server name.

    Without `share` its list of key shares is empty: the server answers with a
    HelloRetryRequest, which costs it no key operation, and waits for another hello
    (RFC 8446, 4.1.4). Without `tls13` it offers TLS 1.2 only.
    """
    extensions = [
        _extension(0, _block(b"\0" + _block(name.encode("ascii")))),  # server_name
        _extension(10, _block(_GROUPS)),
        _extension(11, b"\1\0"),  # uncompressed points
        _extension(13, _block(_SIGNATURES)),
        _extension(23, b""),  # extended_master_secret
    ]
    if tls13:
        key = _X25519 + _block(os.urandom(32)) if share else b""
        extensions += [
            _extension(43, _block(b"\3\4", 1)),  # supported_versions
            _extension(45, b"\1\1"),  # psk_key_exchange_modes
            _extension(51, _block(key)),  # key_share
        ]
    suites = _SUITES_13 + _SUITES_12 if tls13 else _SUITES_12
    body = b"\3\3" + os.urandom(32) + _block(os.urandom(32), 1) + _block(suites) + b"\1\0"
    message = b"\1" + _block(body + _block(b"".join(extensions)), 3)
    return b"\x16\3\1" + _block(message)


if __name__ == "__main__":
    from bench.hello_corpus import main

    main()

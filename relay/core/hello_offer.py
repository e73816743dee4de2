"""What a refused client had offered in its hello, in words.

Never: runs for a client that is served; raises on what a peer sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from relay.core.hello_extensions import parse_alpn
from relay.errors import Reason

_MOST = 12  # of one list
_LONGEST = 40  # of one ALPN name
_GROUPS, _ALPN, _VERSIONS = 10, 16, 43
_SSL3 = 0x0300
_VERSION_NAMES: Final = {
    _SSL3: "SSL 3.0",
    0x0301: "TLS 1.0",
    0x0302: "TLS 1.1",
    0x0303: "TLS 1.2",
    0x0304: "TLS 1.3",
}
_GROUP_NAMES: Final = {
    0x0017: "P-256",
    0x0018: "P-384",
    0x0019: "P-521",
    0x001D: "X25519",
    0x001E: "X448",
    0x0100: "ffdhe2048",
    0x0101: "ffdhe3072",
    0x0102: "ffdhe4096",
    0x11EB: "SecP256r1MLKEM768",
    0x11EC: "X25519MLKEM768",
    0x11ED: "SecP384r1MLKEM1024",
}
# OpenSSL's names, as in ciphers_tls12 and ciphersuites_tls13.
_CIPHER_NAMES: Final = {
    0x0004: "RC4-MD5",
    0x0005: "RC4-SHA",
    0x000A: "DES-CBC3-SHA",
    0x002F: "AES128-SHA",
    0x0033: "DHE-RSA-AES128-SHA",
    0x0035: "AES256-SHA",
    0x0039: "DHE-RSA-AES256-SHA",
    0x003C: "AES128-SHA256",
    0x003D: "AES256-SHA256",
    0x0067: "DHE-RSA-AES128-SHA256",
    0x006B: "DHE-RSA-AES256-SHA256",
    0x009C: "AES128-GCM-SHA256",
    0x009D: "AES256-GCM-SHA384",
    0x009E: "DHE-RSA-AES128-GCM-SHA256",
    0x009F: "DHE-RSA-AES256-GCM-SHA384",
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    0x1304: "TLS_AES_128_CCM_SHA256",
    0x1305: "TLS_AES_128_CCM_8_SHA256",
    0xC009: "ECDHE-ECDSA-AES128-SHA",
    0xC00A: "ECDHE-ECDSA-AES256-SHA",
    0xC013: "ECDHE-RSA-AES128-SHA",
    0xC014: "ECDHE-RSA-AES256-SHA",
    0xC023: "ECDHE-ECDSA-AES128-SHA256",
    0xC024: "ECDHE-ECDSA-AES256-SHA384",
    0xC027: "ECDHE-RSA-AES128-SHA256",
    0xC028: "ECDHE-RSA-AES256-SHA384",
    0xC02B: "ECDHE-ECDSA-AES128-GCM-SHA256",
    0xC02C: "ECDHE-ECDSA-AES256-GCM-SHA384",
    0xC02F: "ECDHE-RSA-AES128-GCM-SHA256",
    0xC030: "ECDHE-RSA-AES256-GCM-SHA384",
    0xCCA8: "ECDHE-RSA-CHACHA20-POLY1305",
    0xCCA9: "ECDHE-ECDSA-CHACHA20-POLY1305",
    0xCCAA: "DHE-RSA-CHACHA20-POLY1305",
}
_KINDS = frozenset(
    (
        Reason.PROTOCOL_VERSION,
        Reason.NO_SHARED_CIPHER,
        Reason.NO_SHARED_GROUP,
        Reason.NO_SHARED_ALPN,
    )
)
_SIGNALS = frozenset((0x00FF, 0x5600))  # they are no ciphers: RFC 5746, RFC 7507


def offered(reason: Reason, hello: bytes) -> str:
    """What this hello, which was well-formed, offers of the kind that is refused."""
    if reason not in _KINDS:
        return ""
    try:
        return _offered(reason, _message(hello))
    except IndexError:
        return ""


def _offered(reason: Reason, message: bytes) -> str:
    legacy = _number(message, 4)
    at = 38 + 1 + message[38]
    ciphers = _numbers(_vector(message, at, 2))
    at += 2 + 2 * len(ciphers)
    at += 1 + message[at]
    extensions = dict(_extensions(message[at + 2 :]))
    versions = [each for each in _numbers(extensions.get(_VERSIONS, b"")[1:]) if not _grease(each)]
    if reason is Reason.PROTOCOL_VERSION:
        if versions and legacy > _SSL3:
            return f"offers {_names(versions, _VERSION_NAMES)}"
        return f"offers at most {_VERSION_NAMES.get(legacy, hex(legacy))}"
    groups = _numbers(extensions.get(_GROUPS, b"")[2:])
    if reason is Reason.NO_SHARED_ALPN:
        names = parse_alpn(extensions.get(_ALPN, b"")) or ()
        return f"offers the protocols {_list([_printable(each) for each in names])}"
    found = []
    if reason is Reason.NO_SHARED_CIPHER:
        ciphers = [each for each in ciphers if each not in _SIGNALS]
        found.append(f"the ciphers {_names(ciphers, _CIPHER_NAMES)}")
    if groups:
        found.append(f"the groups {_names(groups, _GROUP_NAMES)}")
    return "offers " + " and ".join(found) if found else ""


def _message(hello: bytes) -> bytes:
    """The handshake message in its records."""
    message, at = b"", 0
    while at + 5 <= len(hello):
        end = at + 5 + _number(hello, at + 3)
        message += hello[at + 5 : end]
        at = end
    return message


def _number(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _vector(data: bytes, at: int, width: int) -> bytes:
    size = int.from_bytes(data[at : at + width], "big")
    return data[at + width : at + width + size]


def _numbers(data: bytes) -> list[int]:
    return [_number(data, at) for at in range(0, len(data) - 1, 2)]


def _extensions(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        body = _vector(data, at + 2, 2)
        yield _number(data, at), body
        at += 4 + len(body)


def _printable(name: bytes) -> str:
    return ascii(name.decode("latin-1"))[1:-1][:_LONGEST]


def _grease(number: int) -> bool:
    """Whether it only tests that unknown values are ignored (RFC 8701)."""
    return number & 0x0F0F == 0x0A0A and number >> 8 == number & 0xFF


def _names(numbers: list[int], names: dict[int, str]) -> str:
    return _list([names.get(each, f"{each:#06x}") for each in numbers if not _grease(each)])


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more

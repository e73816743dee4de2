"""5,121 first flights of clients, and where a relay has to send each of them."""

from __future__ import annotations

import random
from typing import NamedTuple

from tests.support.hellos import (
    HELLOS,
    alpn,
    block,
    extension,
    handshake,
    records,
    server_name,
    versions,
)

SIZE = 5_121
ROUTES = {"app": ["app.example.com"], "wild": ["*.wild.example.com"], "rest": []}
REFUSED = ""
_GREASE = (0x0A0A, 0x3A3A, 0xFAFA)
_ECH = 0xFE0D


class Stream(NamedTuple):
    """`parts` are sent one after the other; `pool` gets them, or nobody (REFUSED)."""

    what: str
    parts: tuple[bytes, ...]
    pool: str


def message_of(flight: bytes) -> bytes:
    """The handshake message in records."""
    message, at = b"", 0
    while at < len(flight):
        size = int.from_bytes(flight[at + 3 : at + 5], "big")
        message += flight[at + 5 : at + 5 + size]
        at += 5 + size
    return message


def _numbered(message: bytes, number: int) -> bytes:
    """The message with another random, so that no two streams are equal."""
    return message[:6] + number.to_bytes(32, "big") + message[38:]


def _pool_of(name: str) -> str:
    sni = b"app.example.com" in HELLOS[name].lower()
    return "app" if sni else "rest"


def _hello(*extensions: bytes) -> bytes:
    body = b"\x03\x03" + bytes(32) + block(bytes(32), 1) + block(b"\x13\x01") + block(b"\0", 1)
    return handshake(body + block(b"".join(extensions)))


def corpus() -> list[Stream]:
    """Every stream, always the same ones."""
    chance, found = random.Random(11), list[Stream]()

    def add(what: str, message: bytes, pool: str, cuts: tuple[int, ...] = (), *sizes: int) -> None:
        flight = records(_numbered(message, len(found)), (*sizes, *[16_384] * 4))
        at, parts = 0, []
        for cut in (*cuts, len(flight)):
            parts.append(flight[at:cut])
            at = cut
        found.append(Stream(what, tuple(parts), pool))

    for name, flight in HELLOS.items():
        message, pool = message_of(flight), _pool_of(name)
        step = 1 if len(message) < 700 else 4  # every split point, or every fourth
        for cut in range(1, len(message) + 4, step):
            add(f"{name} cut at {cut}", message, pool, (cut,))
        for size in (1, 2, 7, 40, 100, 300):
            add(f"{name} in records", message, pool, (), *([size] * min(400, len(message) // size)))
    for number in range(400):
        _add_modern(add, chance, number)
    for number in range(300):
        _add_malformed(found, chance, number)
    assert len(found) <= SIZE, len(found)
    while len(found) < SIZE:
        _add_modern(add, chance, len(found))
    return found


def _add_modern(add: object, chance: random.Random, number: int) -> None:
    """As browsers do it: GREASE, ECH, any order, post-quantum key shares."""
    name, pool = chance.choice(
        [
            (b"app.example.com", "app"),
            (b"APP.example.com.", "app"),
            (b"x%d.wild.example.com" % number, "wild"),
            (b"a.b.wild.example.com", "rest"),
            (b"public.example.net", "rest"),
            (None, "rest"),
        ]
    )
    extensions = [
        extension(chance.choice(_GREASE), b""),
        versions(0x0A0A, 0x0304, 0x0303),
        alpn(b"h2", b"http/1.1"),
        extension(51, block(b"\x11\xec" + block(chance.randbytes(1216)))),
        extension(21, bytes(chance.randrange(400))),
    ]
    if name is not None:
        extensions.append(server_name(name))
    if chance.random() < 0.7:
        extensions.append(extension(_ECH, b"\0" + chance.randbytes(chance.choice((186, 218, 250)))))
    if chance.random() < 0.1:
        extensions.append(extension(0x4469, bytes(chance.choice((9_000, 20_000, 50_000)))))
    chance.shuffle(extensions)
    message = _hello(*extensions)
    cuts = tuple(sorted(chance.sample(range(1, len(message)), chance.randrange(4))))
    add("a browser's", message, pool, cuts)  # type: ignore[operator]


def _add_malformed(found: list[Stream], chance: random.Random, number: int) -> None:
    """Cut short, of another protocol, or with a fault that makes the name doubtful."""
    whole = records(_numbered(_hello(server_name(b"app.example.com")), number))
    name = b"app.example.com"
    flight = chance.choice(
        [
            whole[: chance.randrange(1, len(whole))],
            records(_hello(server_name(name), server_name(b"x.wild.example.com"))),
            records(_hello(server_name(name, b"x.wild.example.com"))),
            records(_hello(server_name(b"app\0.example.com"))),
            records(handshake(_hello(server_name(name))[4:-1])),
            records(handshake(bytes(40), kind=2)),
            b"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n" + whole,
            b"\x16\x02\x00" + whole[3:],
            b"\x17" + whole[1:],
            chance.randbytes(chance.randrange(1, 600)).replace(b"\x16", b"\x15"),
        ]
    )
    found.append(Stream("malformed", (flight,), REFUSED))

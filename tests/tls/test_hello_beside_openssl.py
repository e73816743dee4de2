"""Compares the relay's hello parser with OpenSSL's, on randomly changed hellos.

Both get the same bytes. Where OpenSSL continues, the relay must have read the same
server name; where OpenSSL waits, the relay waits.
"""

from __future__ import annotations

import random

import pytest
from OpenSSL import SSL

from relay.core.hello import NEED_DATA, Hello, parse_hello, parse_name
from relay.tls.raw import HOST_NAME, NULL, ffi, lib
from tests.support.hellos import HELLOS, block, extension, handshake, records

CHANGED_HELLOS = 400  # per seed; about 0.4 ms each
NAMES = [
    b"", b"::1", b"[::1]:443", b"h:1", "bü.x".encode(), b"a.b.", b".", b"..", b"a..b", b".a",
    b"a\0b", b"*.x", b"A_b.C", b"x" * 63, b"x" * 255, b"x" * 256, b"x" * 300, b"\xff\xfe", b"a\n",
]  # fmt: skip
VERSIONS = [0x0304, 0x0303, 0x0302, 0x0301, 0x0300, 0x7A7A, 0x7F1C, 0x0305, 0, 0xFFFF]
KINDS = [
    0,
    16,
    43,
    41,
    51,
    10,
    13,
    45,
    5,
    18,
    21,
    23,
    35,
    65281,
    2570,
    60000,
    17513,
    49,
    44,
    42,
    57,
]


@pytest.fixture(scope="module")
def openssl(pki):
    """`openssl(data)`: does OpenSSL continue, wait or refuse, and which name did it
    read?
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(pki.gateway.issued.certificate)
    context.use_privatekey(pki.gateway.issued.key)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_verify(SSL.VERIFY_PEER)

    def feed(data):
        server = SSL.Connection(context, None)
        server.set_accept_state()
        for at in range(0, len(data), 16_384):
            server.bio_write(data[at : at + 16_384])
        try:
            server.do_handshake()
        except SSL.WantReadError:
            waits = True
        except SSL.Error:
            waits = False
        try:
            answer = server.bio_read(10)
        except SSL.WantReadError:
            answer = b""
        pointer = lib.SSL_get_servername(server._ssl, HOST_NAME)
        name = b"" if pointer == NULL else ffi.string(pointer)
        return ("goes on" if answer[:1] == b"\x16" else "waits" if waits else "refuses"), name

    return feed


def extensions_of(message):
    """The start of a hello, and its extensions as pairs."""
    at = 38
    at += 1 + message[at]
    at += 2 + int.from_bytes(message[at : at + 2], "big")
    at += 1 + message[at]
    begin, found = message[4:at], []
    at += 2
    while at < len(message):
        kind, length = (int.from_bytes(message[at + i : at + i + 2], "big") for i in (0, 2))
        found.append((kind, message[at + 4 : at + 4 + length]))
        at += 4 + length
    return begin, found


class Changer:
    """Makes hellos that are almost correct."""

    def __init__(self, seed):
        self.chance = random.Random(seed)

    def message(self):
        chance = self.chance
        begin, extensions = extensions_of(HELLOS[chance.choice(sorted(HELLOS))][5:])
        for _ in range(chance.choice((0, 1, 1, 1, 2))):
            begin, extensions = self.change(begin, list(extensions))
        if sum(4 + len(body) for _, body in extensions) > 65_535:
            extensions = extensions[:3]
        made = handshake(begin + block(b"".join(extension(*each) for each in extensions)))
        if chance.random() < 0.15:
            at = chance.randrange(len(made))
            made = made[:at] + chance.randbytes(1) + made[at + 1 :]
        if chance.random() < 0.1:
            made = chance.choice((made + b"xyz", made[: chance.randrange(len(made))]))
        return made

    def change(self, begin, extensions):
        chance = self.chance
        change = chance.choice(
            (
                self.repeat,
                self.drop,
                self.shuffle,
                self.insert,
                self.bend,
                self.resize,
                self.name,
                self.versions,
                self.alpn,
                self.fill,
            )
        )
        if chance.random() < 0.15:
            begin = chance.choice(VERSIONS).to_bytes(2, "big") + begin[2:]
        if chance.random() < 0.1:
            at = chance.choice(
                (34, 35, len(begin) - 1, len(begin) - 2, chance.randrange(len(begin)))
            )
            begin = begin[:at] + bytes((chance.choice((0, 1, 2, 33, 255)),)) + begin[at + 1 :]
        change(extensions)
        return begin, extensions

    def repeat(self, extensions):
        extensions.append(self.chance.choice(extensions))

    def drop(self, extensions):
        extensions.pop(self.chance.randrange(len(extensions)))

    def shuffle(self, extensions):
        self.chance.shuffle(extensions)

    def insert(self, extensions):
        body = self.chance.randbytes(self.chance.choice((0, 1, 2, 5, 20)))
        at = self.chance.randrange(len(extensions) + 1)
        extensions.insert(at, (self.chance.choice(KINDS), body))

    def bend(self, extensions):
        at = self.chance.randrange(len(extensions))
        kind, body = extensions[at]
        if body:
            where = self.chance.randrange(len(body))
            extensions[at] = kind, body[:where] + self.chance.randbytes(1) + body[where + 1 :]

    def resize(self, extensions):
        at = self.chance.randrange(len(extensions))
        kind, body = extensions[at]
        extensions[at] = kind, self.chance.choice((body[:-1], body + b"x", body[1:], b"", body * 2))

    def replace(self, extensions, kind, body):
        extensions[:] = [each for each in extensions if each[0] != kind]
        extensions.insert(self.chance.randrange(len(extensions) + 1), (kind, body))

    def name(self, extensions):
        chance = self.chance
        name = bytes((chance.choice((0, 0, 0, 0, 1)),)) + block(chance.choice(NAMES))
        names = block(name + chance.choice((b"", b"", b"", b"\0" + block(b"z"), b"x")))
        self.replace(extensions, 0, names + chance.choice((b"", b"", b"", b"y")))

    def versions(self, extensions):
        some = [
            self.chance.choice(VERSIONS).to_bytes(2, "big") for _ in range(self.chance.randrange(5))
        ]
        self.replace(
            extensions, 43, block(b"".join(some), 1) + self.chance.choice((b"", b"", b"z"))
        )

    def alpn(self, extensions):
        some = [
            block(self.chance.choice((b"h2", b"http/1.1", b"", b"x" * 255)), 1)
            for _ in range(self.chance.randrange(4))
        ]
        self.replace(extensions, 16, block(b"".join(some)) + self.chance.choice((b"", b"", b"z")))

    def fill(self, extensions):
        extensions.append((21, bytes(self.chance.choice((1, 500, 16_000, 40_000)))))

    def flight(self):
        """The message in records: whole, split, or with other records in between."""
        chance, message = self.chance, self.message()
        if chance.random() < 0.7:
            some = chance.choice(
                ([], [chance.choice((1, 2, 5, 100)) for _ in range(chance.randrange(60))])
            )
            return records(message, [*some, *[16_384] * 6])
        flight, at = b"", 0
        while at < len(message):
            if chance.random() < 0.2:
                flight += b"\x16\x03\x01\0\0" * chance.choice((1, 2, 32, 33))
            size = chance.choice((50, 500, 16_384))
            kind, major = (
                chance.choice((22,) * 40 + (20, 21, 23)),
                chance.choice((3,) * 40 + (0, 2, 4)),
            )
            flight += bytes((kind, major, chance.choice((0, 1, 3, 4, 255)))) + block(
                message[at : at + size]
            )
            at += size
        return flight


@pytest.mark.parametrize("seed", range(5))
def test_a_hello_that_openssl_accepts_has_the_same_name(openssl, seed):
    changer = Changer(seed)
    seen = set()
    for number in range(CHANGED_HELLOS):
        flight = changer.flight()
        verdict, name = openssl(flight)
        read = parse_hello(flight)
        seen.add(verdict)
        if verdict == "goes on":
            assert isinstance(read, Hello), f"hello {number}: {read}"
            assert read.sni == parse_name(name), f"hello {number}"
        else:
            assert (read is NEED_DATA) is (verdict == "waits"), f"hello {number}: {read}"
    assert seen == {"goes on", "waits", "refuses"}


@pytest.mark.parametrize("name", HELLOS)
def test_openssl_accepts_every_captured_hello(openssl, name):
    verdict, read = openssl(HELLOS[name])
    assert verdict == "goes on"
    assert parse_hello(HELLOS[name]).sni == parse_name(read)

"""ClientHellos: captured from real clients, and built for a test."""

from pathlib import Path

HELLOS = {
    path.stem: bytes.fromhex(path.read_text())
    for path in sorted((Path(__file__).parents[1] / "core" / "hellos").glob("*.hex"))
}


def records(message, sizes=()):
    """The handshake message cut into records of these sizes, and one for the rest."""
    out, at = b"", 0
    for size in (*sizes, len(message)):
        piece = message[at : at + size]
        at += size
        if piece:
            out += b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
    return out


def handshake(body, kind=1):
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def block(data, width=2):
    return len(data).to_bytes(width, "big") + data


def extension(kind, body):
    return kind.to_bytes(2, "big") + block(body)


def server_name(*names, kind=0):
    return extension(0, block(b"".join(bytes([kind]) + block(name) for name in names)))


def alpn(*names):
    return extension(16, block(b"".join(block(name, 1) for name in names)))


def versions(*numbers):
    return extension(43, block(b"".join(n.to_bytes(2, "big") for n in numbers), 1))


def hello(*extensions, version=0x0303, session=b""):
    """A ClientHello with these extensions, in one record.

    Without any, the length of the extensions is left out too.
    """
    body = (
        version.to_bytes(2, "big")
        + bytes(32)
        + block(session, 1)
        + block(b"\x13\x01\x13\x02")
        + block(b"\x00", 1)
    )
    return records(handshake(body + (block(b"".join(extensions)) if extensions else b"")))

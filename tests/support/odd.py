"""Certificates encoded by hand, byte by byte.

OpenSSL verifies them, but `cryptography` cannot make them, and cannot parse some.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from relay.demo.ca import Authority
from tests.support.pki import Files

ECDSA_SHA256 = "1.2.840.10045.4.3.2"
CN, OU, SAN, EKU, KEY_USAGE, BASIC_CONSTRAINTS = (
    "2.5.4.3",
    "2.5.4.11",
    "2.5.29.17",
    "2.5.29.37",
    "2.5.29.15",
    "2.5.29.19",
)
AIA, SCT, NAME_CONSTRAINTS = "1.3.6.1.5.5.7.1.1", "1.3.6.1.4.1.11129.2.4.2", "2.5.29.30"
UTF8, PRINTABLE, T61, IA5, BMP, UNIVERSAL = 12, 19, 20, 22, 30, 28


def tlv(tag: int, *contents: bytes) -> bytes:
    """One element."""
    data = b"".join(contents)
    size = len(data)
    if size < 0x80:
        return bytes((tag, size)) + data
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + data


def sequence(*contents: bytes) -> bytes:
    return tlv(0x30, *contents)


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    data = b""
    for number in (40 * first + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        data += bytes(reversed(groups))
    return tlv(6, data)


def integer(number: int) -> bytes:
    return tlv(2, number.to_bytes(number.bit_length() // 8 + 1, signed=True))


def attribute(kind: str, text: str | bytes, tag: int = UTF8) -> bytes:
    data = (
        text
        if isinstance(text, bytes)
        else text.encode({BMP: "utf-16-be", UNIVERSAL: "utf-32-be"}.get(tag, "utf-8"))
    )
    return tlv(0x31, sequence(oid(kind), tlv(tag, data)))


def name(*attributes: bytes) -> bytes:
    """A distinguished name of `attribute`s."""
    return sequence(*attributes)


def extension(kind: str, value: bytes, critical: bytes = b"") -> bytes:
    """`critical`: the whole BOOLEAN, if any."""
    return sequence(oid(kind), critical, tlv(4, value))


TRUE, FALSE = tlv(1, b"\xff"), tlv(1, b"\0")
FOR_BOTH = extension(EKU, sequence(oid("1.3.6.1.5.5.7.3.1"), oid("1.3.6.1.5.5.7.3.2")))


def dns(*names: str) -> bytes:
    """The value of a subjectAltName extension."""
    return sequence(*(tlv(0x82, each.encode()) for each in names))


@dataclass(frozen=True)
class Odd:
    """How a certificate differs from an ordinary one."""

    subject: bytes = field(default_factory=lambda: name(attribute(CN, "odd")))
    extensions: tuple[bytes, ...] = ()
    version: bytes = field(default_factory=lambda: tlv(0xA0, integer(2)))
    serial: bytes = field(default_factory=lambda: integer(4711))
    san: bytes | None = b""  # b"" is the ordinary one, None leaves it out
    bend: Callable[[bytes], bytes] = lambda body: body
    key: Any = None
    spki: bytes = b""  # the key's, if it is not the ordinary one


def usual_san() -> bytes:
    return extension(SAN, dns("backend.example.com", "app.example.com", "localhost"))


@dataclass(frozen=True)
class Signer:
    """A CA's name and key.

    The rest of its certificate does not affect the certificates it issues.
    """

    name: bytes
    key: Any

    @classmethod
    def of(cls, authority: Authority) -> Signer:
        return cls(authority.certificate.subject.public_bytes(), authority.key)


def make_root(odd: Odd) -> tuple[bytes, Signer]:
    """A self-signed CA's DER, and the signer that issues below it."""
    signer = Signer(odd.subject, odd.key or ec.generate_private_key(ec.SECP256R1()))
    return make(replace(odd, key=signer.key), signer, ca=True)[0], signer


def make(odd: Odd, issuer: Authority | Signer, *, ca: bool = False) -> tuple[bytes, Any]:
    """A certificate's DER and its key."""
    if isinstance(issuer, Authority):
        issuer = Signer.of(issuer)
    key = odd.key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    algorithm = sequence(oid(ECDSA_SHA256))
    times = (
        tlv(23, f"{at:%y%m%d%H%M%S}Z".encode())
        for at in (now - timedelta(days=1), now + timedelta(days=90))
    )
    san = (usual_san() if odd.san == b"" else odd.san) or b""
    constraints = extension(BASIC_CONSTRAINTS, sequence(TRUE) if ca else sequence(), TRUE)
    listed = sequence(constraints, b"" if ca else FOR_BOTH, b"" if ca else san, *odd.extensions)
    body = sequence(
        odd.version,
        odd.serial,
        algorithm,
        issuer.name,
        sequence(*times),
        odd.subject,
        odd.spki or key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        tlv(0xA3, listed) if odd.version else b"",
    )
    body = odd.bend(body)
    signature = issuer.key.sign(body, ec.ECDSA(hashes.SHA256()))
    return sequence(body, algorithm, tlv(3, b"\0", signature)), key


def pem(der: bytes, label: str = "CERTIFICATE") -> bytes:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


def rsa_pss(parameters: bytes = b"") -> tuple[Odd, bytes]:
    """A certificate for an RSA-PSS key, and that key in PEM.

    `cryptography` makes plain RSA keys only.
    """
    key = rsa.generate_private_key(65537, 2048)
    algorithm = sequence(oid("1.2.840.113549.1.1.10"), parameters)
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    private = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    spki = sequence(algorithm, tlv(3, b"\0", public))
    return Odd(key=key, spki=spki), pem(
        sequence(integer(0), algorithm, tlv(4, private)), "PRIVATE KEY"
    )


def write_odd(directory: Path, what: str, odd: Odd, issuer: Authority | Signer) -> Files:
    """Write WHAT.pem and WHAT.key."""
    der, key = make(odd, issuer)
    files = Files(directory / f"{what}.pem", directory / f"{what}.key", None)
    files.certificate.write_bytes(pem(der))
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files.key.chmod(0o600)
    return files


_NAMES = ("backend.example.com", "app.example.com")


def _subject(text: str | bytes, tag: int) -> Odd:
    return Odd(subject=name(attribute(CN, text, tag)))


def _with_names(*more: bytes) -> Odd:
    """A subjectAltName with the ordinary DNS names, then these elements."""
    names = (tlv(0x82, each.encode()) for each in _NAMES)
    return Odd(san=extension(SAN, sequence(*names, *more)))


def _long_lengths(body: bytes) -> bytes:
    """The body with its length in four bytes, where two or fewer are enough (BER)."""
    start = 2 + (body[1] & 0x7F if body[1] & 0x80 else 0)
    return b"\x30\x84" + (len(body) - start).to_bytes(4) + body[start:]


_PRIVATE = extension("1.2.3.4.5", b"\x05\0")
# Certificates that OpenSSL verifies, by a word for what is unusual.
SOUND: dict[str, Odd] = {
    "underscore": _subject("my_service", PRINTABLE),
    "ampersand": _subject("M&S", PRINTABLE),
    "at": _subject("alice@example.com", PRINTABLE),
    "asterisk": _subject("*.example.com", PRINTABLE),
    "t61": _subject("Müller".encode("latin-1"), T61),
    "bmp": _subject("alice", BMP),
    "universal": _subject("alice", UNIVERSAL),
    "high bytes in ia5": _subject("Müller".encode("latin-1"), IA5),
    "empty name": Odd(subject=name()),
    "empty value": _subject("", UTF8),
    "long common name": _subject("a" * 300, UTF8),
    "two in one part": Odd(
        subject=name(
            tlv(0x31, sequence(oid(OU), tlv(UTF8, b"b")), sequence(oid(CN), tlv(UTF8, b"a")))
        )
    ),
    "critical FALSE": Odd(extensions=(extension("1.2.3.4.5", b"\x05\0", FALSE),)),
    "critical FALSE of names": Odd(san=extension(SAN, dns(*_NAMES), FALSE)),
    "repeated": Odd(extensions=(_PRIVATE, _PRIVATE)),
    "ip of 5 bytes": _with_names(tlv(0x87, b"12345")),
    "x400": _with_names(tlv(0xA3, sequence())),
    "edi": _with_names(tlv(0xA5, tlv(0xA1, tlv(UTF8, b"party")))),
    "high bytes in names": _with_names(tlv(0x82, b"m\xfcller"), tlv(0x86, b"a:\xfc")),
    "version 4": Odd(version=tlv(0xA0, integer(3))),
    "aia": Odd(extensions=(extension(AIA, b"\x30\x03abc"),)),
    "sct": Odd(extensions=(extension(SCT, b"none"),)),
    "negative serial": Odd(serial=integer(-5)),
    "zero serial": Odd(serial=integer(0)),
    "serial of 40 bytes": Odd(serial=tlv(2, b"\x7f" * 40)),
    "long lengths": Odd(bend=_long_lengths),
}

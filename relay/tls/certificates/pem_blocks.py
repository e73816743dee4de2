"""The blocks of a PEM file (RFC 7468), and what else a file is that has none.

Text around blocks, CRLF, a byte order mark and two blocks on one line are taken, as OpenSSL's
own tools write some of these. The time it takes grows with the file and not with its square.

Never: raises for what is in a file, or looks into a block.
"""

from __future__ import annotations

import binascii
import re
from typing import NamedTuple

_LINE = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]{1,40})-----")
_BASE64 = re.compile(rb"[A-Za-z0-9+/=\s]{100,}")
_PKCS7 = bytes.fromhex("06092a864886f70d0107")

_REMEDY_BY_LABEL = {
    "TRUSTED CERTIFICATE": "it is OpenSSL's TRUSTED CERTIFICATE format; convert it with: openssl x509 -in FILE -out NEW_FILE",
    "PKCS7": "it is PKCS#7; convert it with: openssl pkcs7 -print_certs -in FILE -out NEW_FILE",
    "CMS": "it is CMS; convert it with: openssl pkcs7 -print_certs -in FILE -out NEW_FILE",
    "CERTIFICATE REQUEST": "it is a request for a certificate; have a CA sign it, and name what the CA returns",
    "NEW CERTIFICATE REQUEST": "it is a request for a certificate; have a CA sign it, and name what the CA returns",
    "X509 CRL": "it is a revocation list; name the file of the CA's certificate",
    "PUBLIC KEY": "it is a public key only; name the certificate, and the private key",
    "OPENSSH PRIVATE KEY": "it is a key of OpenSSH; convert a copy with: ssh-keygen -p -m PEM -f FILE",
}  # fmt: skip


class Block(NamedTuple):
    """One block: `data` is what its base64 says, `fault` why there is none."""

    label: str
    data: bytes
    fault: str
    text: bytes  # the block as PEM, with plain line ends

    @property
    def encrypted(self) -> bool:
        """Whether it is a private key under a passphrase (RFC 5958, or RFC 1421's header)."""
        return (
            self.label.startswith("ENCRYPTED") or b"ENCRYPTED" in self.text[:200].split(b"\n\n")[0]
        )


def read_blocks(data: bytes) -> list[Block]:
    """All blocks of a file, in their order; those that are damaged too."""
    found: list[Block] = []
    label, start = "", -1
    for line in _LINE.finditer(data):
        name = line[2].decode("ascii")
        if line[1] == b"BEGIN":
            if start >= 0:
                found.append(
                    _broken(label, "has no END line; the file was cut, or put together wrongly")
                )
            label, start = name, line.end()
        elif start >= 0:
            if name == label:
                found.append(_block(label, data[start : line.start()]))
            else:
                found.append(_broken(label, f"ends with END {name}"))
            start = -1
    if start >= 0:
        found.append(_broken(label, "has no END line; the file was cut"))
    return found


def _broken(label: str, fault: str) -> Block:
    return Block(label, b"", fault, b"")


def _block(label: str, body: bytes) -> Block:
    lines = [line.strip() for line in body.splitlines()]
    text = b"\n".join(
        (f"-----BEGIN {label}-----".encode(), *lines[1:], f"-----END {label}-----\n".encode())
    )
    try:
        data = binascii.a2b_base64(b"".join(_without_headers(lines)), strict_mode=True)
    except ValueError as error:
        return Block(label, b"", f"has damaged base64 in it ({error})", text)
    return Block(label, data, "" if data else "is empty", text)


def _without_headers(lines: list[bytes]) -> list[bytes]:
    """RFC 1421 puts headers and an empty line before the base64."""
    if any(b":" in line for line in lines[:3]):
        body = lines[1:]
        return body[body.index(b"") :] if b"" in body else []
    return lines


def remedy_for(data: bytes, otherwise: str) -> str:
    """What to do about a file without the block that was looked for."""
    for block in read_blocks(data):
        if block.label in _REMEDY_BY_LABEL:
            return _REMEDY_BY_LABEL[block.label]
    if not data.strip():
        return f"the file is empty; {otherwise}"
    if (
        data[:2] in {b"\xff\xfe", b"\xfe\xff"}
        or b"-\0-\0-\0" in data[:4096]
        or b"\0-\0-" in data[:4096]
    ):
        return "it is UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE"
    if data[:4] == b"\xfe\xed\xfe\xed":
        return "it is a Java key store; export with: keytool -importkeystore -deststoretype pkcs12, then openssl pkcs12 -nodes"
    if data[:1] == b"\x30":
        if b"\2\1\3" in data[2:8]:
            return "it is PKCS#12; convert it with: openssl pkcs12 -nodes -in FILE -out NEW_FILE"
        if _PKCS7 in data[:24]:
            return "it is PKCS#7 in DER; convert it with: openssl pkcs7 -inform DER -print_certs -in FILE -out NEW_FILE"
        return "it looks like DER; convert it with openssl x509 -inform DER, openssl pkey -inform DER or openssl pkcs12 -nodes"
    if b"-----BEGIN" not in data and _BASE64.fullmatch(data.strip()[:4096]):
        return "it is base64 without its first and last line; add -----BEGIN CERTIFICATE----- and -----END CERTIFICATE-----"
    return otherwise

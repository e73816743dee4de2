"""The blocks of a PEM file (RFC 7468), and a remedy for files of another format.

Text around blocks, CRLF, a byte order mark and two blocks on one line are accepted:
OpenSSL's own tools write some of these. The time grows in proportion to the file's
size.

Never: raises for a file's contents, or parses what is inside a block.
"""

from __future__ import annotations

import binascii
import re
from typing import NamedTuple

# RFC 7468, section 3: a label has any printable characters but hyphens.
_LINE = re.compile(rb"-----(BEGIN|END) ([ -,.-~]{1,64})-----")
_BASE64 = re.compile(rb"[A-Za-z0-9+/=\s]{100,}")
_PKCS7 = bytes.fromhex("06092a864886f70d0107")

_REQUEST = "it is a certificate request; have a CA sign it, and use the certificate it returns"
_REMEDY_BY_LABEL = {
    "TRUSTED CERTIFICATE": (
        "it is OpenSSL's TRUSTED CERTIFICATE format;"
        " convert it with: openssl x509 -in FILE -out NEW_FILE"
    ),
    "PKCS7": "it is PKCS#7; convert it with: openssl pkcs7 -print_certs -in FILE -out NEW_FILE",
    "CMS": "it is CMS; convert it with: openssl pkcs7 -print_certs -in FILE -out NEW_FILE",
    "CERTIFICATE REQUEST": _REQUEST,
    "NEW CERTIFICATE REQUEST": _REQUEST,
    "X509 CRL": "it is a revocation list; give the path of the CA's certificate",
    "PUBLIC KEY": "it is only a public key; give the path of the certificate or private key",
    "OPENSSH PRIVATE KEY": (
        "it is an OpenSSH key; convert a copy with: ssh-keygen -p -m PEM -f FILE"
    ),
}


# Labels whose private key is in the file, and known labels of other things. Any other
# label is for a provider of OpenSSL, such as "TSS2 PRIVATE KEY".
_KEY_LABELS = frozenset(
    (
        "PRIVATE KEY",
        "ENCRYPTED PRIVATE KEY",
        "RSA PRIVATE KEY",
        "EC PRIVATE KEY",
        "DSA PRIVATE KEY",
        "OPENSSH PRIVATE KEY",
    )
)
_OTHER_LABELS = _REMEDY_BY_LABEL.keys() | {
    "CERTIFICATE",
    "X509 CERTIFICATE",
    "ATTRIBUTE CERTIFICATE",
    "RSA PUBLIC KEY",
    "DSA PUBLIC KEY",
    "EC PARAMETERS",
    "DSA PARAMETERS",
    "DH PARAMETERS",
    "X9.42 DH PARAMETERS",
    "PARAMETERS",
    "SSL SESSION PARAMETERS",
    "OPENSSH PUBLIC KEY",
    "PGP PUBLIC KEY BLOCK",
    "PGP PRIVATE KEY BLOCK",
}


class Block(NamedTuple):
    """One block: `data` is the decoded base64; `fault` says why there is none."""

    label: str
    data: bytes
    fault: str
    text: bytes  # the block as PEM, with plain line ends

    @property
    def for_provider(self) -> bool:
        """Whether only a provider of OpenSSL can make a key of it."""
        return self.label not in _KEY_LABELS and self.label not in _OTHER_LABELS

    @property
    def encrypted(self) -> bool:
        """Whether a passphrase protects the key (RFC 5958, or RFC 1421's header)."""
        return (
            self.label.startswith("ENCRYPTED") or b"ENCRYPTED" in self.text[:200].split(b"\n\n")[0]
        )


def read_blocks(data: bytes) -> list[Block]:
    """All blocks of a file in their order, damaged ones included."""
    found: list[Block] = []
    label, start = "", -1
    for line in _LINE.finditer(data):
        name = line[2].decode("ascii")
        if line[1] == b"BEGIN":
            if start >= 0:
                fault = "has no END line; the file was truncated or joined incorrectly"
                found.append(_damaged(label, fault))
            label, start = name, line.end()
        elif start >= 0:
            if name == label:
                found.append(_block(label, data[start : line.start()]))
            else:
                found.append(_damaged(label, f"ends with END {name}"))
            start = -1
    if start >= 0:
        found.append(_damaged(label, "has no END line; the file was truncated"))
    return found


def key_blocks(blocks: list[Block]) -> list[Block]:
    """The private keys of a file, or else what a provider may make a key of."""
    keys = [block for block in blocks if block.label.endswith("PRIVATE KEY")]
    return keys or [block for block in blocks if block.for_provider]


def _damaged(label: str, fault: str) -> Block:
    return Block(label, b"", fault, b"")


def _block(label: str, body: bytes) -> Block:
    lines = [line.strip() for line in body.splitlines()]
    text = b"\n".join(
        (f"-----BEGIN {label}-----".encode(), *lines[1:], f"-----END {label}-----\n".encode())
    )
    try:
        data = binascii.a2b_base64(b"".join(_without_headers(lines)), strict_mode=True)
    except ValueError as error:
        return Block(label, b"", f"contains damaged base64 ({error})", text)
    return Block(label, data, "" if data else "is empty", text)


def _without_headers(lines: list[bytes]) -> list[bytes]:
    """RFC 1421 puts headers and an empty line before the base64."""
    if any(b":" in line for line in lines[:3]):
        body = lines[1:]
        return body[body.index(b"") :] if b"" in body else []
    return lines


def remedy_for(data: bytes, default: str) -> str:
    """What to do about a file without the expected block.

    `default` if the file's format is not recognized.
    """
    for block in read_blocks(data):
        if block.label in _REMEDY_BY_LABEL:
            return _REMEDY_BY_LABEL[block.label]
    if not data.strip():
        return f"the file is empty; {default}"
    if (
        data[:2] in {b"\xff\xfe", b"\xfe\xff"}
        or b"-\0-\0-\0" in data[:4096]
        or b"\0-\0-" in data[:4096]
    ):
        return "it is UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE"
    if data[:4] == b"\xfe\xed\xfe\xed":
        return (
            "it is a Java key store; export it with: keytool -importkeystore"
            " -deststoretype pkcs12, then openssl pkcs12 -nodes"
        )
    if data[:1] == b"\x30":
        if b"\2\1\3" in data[2:8]:
            return "it is PKCS#12; convert it with: openssl pkcs12 -nodes -in FILE -out NEW_FILE"
        if _PKCS7 in data[:24]:
            return (
                "it is PKCS#7 in DER; convert it with:"
                " openssl pkcs7 -inform DER -print_certs -in FILE -out NEW_FILE"
            )
        return (
            "it looks like DER; convert it with openssl x509 -inform DER,"
            " openssl pkey -inform DER or openssl pkcs12 -nodes"
        )
    if b"-----BEGIN" not in data and _BASE64.fullmatch(data.strip()[:4096]):
        return (
            "it is base64 without its first and last line;"
            " add -----BEGIN CERTIFICATE----- and -----END CERTIFICATE-----"
        )
    return default

"""The password of the balancer-manager page: read from a file, hashed, and compared.

A password file has one line:

    scrypt:N:r:p:SALT:HASH                 base64, made by `relay password`
    pbkdf2_sha256:ITERATIONS:SALT:HASH     base64
    PASSWORD                               then the file's mode must be 0600

systemd shows the access list of a credential as its group's mode, so a plain password
may be a credential of mode 0440.

Comparing takes the same time wherever the passwords differ.

Never: puts a password, or its hash, into a message.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import stat
from pathlib import Path

from relay.credentials import is_credential, shown
from relay.errors import ConfigError, Problem
from relay.files import read_regular

_N, _R, _P, _SALT_BYTES = 1 << 15, 8, 1, 16
_MEMORY_BYTES = 256 * 1024 * 1024
FILE_BYTES = 4096
WHERE = "admin.password_file"


def hash_password(password: str) -> str:
    """The line for the password file."""
    salt = os.urandom(_SALT_BYTES)
    return ":".join(
        (
            "scrypt",
            str(_N),
            str(_R),
            str(_P),
            _text(salt),
            _text(_scrypt(password, salt, _N, _R, _P)),
        )
    )


def verify(password: str, expected: str) -> bool:
    """Whether `password` is the one that a password file's line is for."""
    kind, *fields = expected.split(":")
    try:
        if kind == "scrypt":
            n, r, p, salt, digest = fields
            return hmac.compare_digest(
                _scrypt(password, _bytes(salt), int(n), int(r), int(p)), _bytes(digest)
            )
        if kind == "pbkdf2_sha256":
            iterations, salt, digest = fields
            return hmac.compare_digest(
                hashlib.pbkdf2_hmac("sha256", password.encode(), _bytes(salt), int(iterations)),
                _bytes(digest),
            )
    except (ValueError, OverflowError, binascii.Error):
        return False
    return hmac.compare_digest(password.encode(), expected.encode())


def load_password(path: Path) -> str:
    """The file's line. Raises ConfigError when the file cannot be used."""
    remedy = "write it with: relay password > FILE"
    try:
        data, mode = read_regular(path, FILE_BYTES)
    except OSError as error:
        raise ConfigError(
            [Problem(WHERE, f"{shown(path)} cannot be read: {error.strerror or error}", remedy)]
        ) from None
    try:
        line = data.decode().strip("\r\n")
    except UnicodeDecodeError:
        line = ""
    if not line or len(data) > FILE_BYTES or "\n" in line or not line.isprintable():
        raise ConfigError(
            [
                Problem(
                    WHERE,
                    f"{shown(path)} does not hold one line with a password or its hash",
                    remedy,
                )
            ]
        )
    if line.startswith(("scrypt:", "pbkdf2_sha256:")):
        if not _is_valid_hash(line):
            raise ConfigError([Problem(WHERE, f"the hash in {shown(path)} cannot be used", remedy)])
    elif mode & (0o007 if is_credential(path) else 0o077):
        raise ConfigError(
            [
                Problem(
                    WHERE,
                    f"{shown(path)} holds a plain password and has mode {stat.S_IMODE(mode):04o}, "
                    "so other users can read it",
                    f"chmod 600 {path}, or {remedy}",
                )
            ]
        )
    return line


def _is_valid_hash(line: str) -> bool:
    kind, *fields = line.split(":")
    try:
        if kind == "scrypt":
            n, r, p, salt, digest = fields
            _scrypt("", _bytes(salt), int(n), int(r), int(p))
        else:
            iterations, salt, digest = fields
            return (
                1 <= int(iterations) <= 10_000_000
                and len(_bytes(salt)) >= 8
                and len(_bytes(digest)) == 32
            )
    except (ValueError, OverflowError, binascii.Error):
        return False
    return len(_bytes(salt)) >= 8 and len(_bytes(digest)) == 32


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        password.encode(), salt=salt, n=n, r=r, p=p, maxmem=_MEMORY_BYTES, dklen=32
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)

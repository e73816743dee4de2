"""Reads the passphrase of a private key from its file.

Never: puts a passphrase, or its length, into a message; keeps one.
"""

from __future__ import annotations

import stat
from pathlib import Path

from relay.credentials import file_remedy, shown
from relay.errors import Problem
from relay.files import Files

# OpenSSL asks for a passphrase with a buffer of this size.
_MOST_BYTES = 1024
READ_BYTES = 4096


def passphrase_key(where: str) -> str:
    """The key path of the passphrase, from that of its certificate."""
    return f"{where.rpartition('.')[0]}.key_passphrase_file"


def read_passphrase(where: str, file: Path, problems: list[Problem], files: Files) -> bytes | None:
    """The file's bytes without one line end. None if they cannot be used.

    `where` is the key path of the certificate. Adds to `problems` what is wrong.
    """

    def problem(what: str, remedy: str) -> None:
        problems.append(Problem(passphrase_key(where), what, file_remedy(file, remedy)))

    try:
        data, mode = files.read(file, READ_BYTES)
    except OSError as error:
        remedy = "name a file with the passphrase of the private key, which the relay may read"
        problem(f"cannot read {shown(file)}: {error.strerror or error}", remedy)
        return None
    passphrase = data.removesuffix(b"\n").removesuffix(b"\r") if data[-1:] == b"\n" else data
    if mode & stat.S_IROTH:
        what = f"every user of this machine can read the passphrase in {shown(file)}"
        problem(what, f"chmod 600 {file}")
    elif not passphrase:
        problem(f"{shown(file)} is empty", "write the passphrase of the private key into it")
    elif len(passphrase) > _MOST_BYTES:
        what = f"{shown(file)} has more than {_MOST_BYTES} bytes, the most that OpenSSL takes"
        problem(what, "name the file that has only the passphrase")
    else:
        return passphrase
    return None
